"""Bursts of requests for rounds, and of saves."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest

from tests.chaos.fleet import ChaosProxy
from tests.chaos.polling import Poller
from tests.support.proxies import wait_for

CHECK_ALL = "/admin/proxyhealth/workspaceproxy/health/check/"


@pytest.mark.fault("ten forced updates during a round")
def test_ten_forced_updates__one_more_round(deploy, verdict):
    timeout = 3
    deployment = deploy(interval=60, timeout=timeout)  # so that beat starts no round in between
    silent = deployment.add("silent")
    counted = deployment.add("counted")
    silent.be_silent()
    deployment.start()
    with Poller(deployment) as poller:
        rounds = len(counted.requests)
        deployment.post(CHECK_ALL, all=1)
        running = silent.wait_for_request(5, before=rounds)
        for _ in range(10):
            deployment.post(CHECK_ALL, all=1)
        requested = time.monotonic()
        assert running.end is None, "the round ended before the last request"
        wait_for(lambda: len(counted.requests) >= rounds + 2, 3 * timeout, "the requested round begins")
        assert counted.requests[rounds + 1].begin > requested
        # A further round would begin when this one ends.
        quiet = time.monotonic() + 2 * timeout
        wait_for(lambda: time.monotonic() > quiet, 2 * timeout + 1)
    assert len(counted.requests) == rounds + 2
    assert counted.most_at_once == 1
    poller.check({"silent": "unreachable", "counted": "ok"})
    verdict(f"{len(poller.polls)} polls, exactly one more round")


_SAVES = """
import json, sys, time
from proxyhealth.models import WorkspaceProxy
urls = {urls!r}
rows = list(WorkspaceProxy.objects.order_by("name"))
begin = time.monotonic()
for n in range({saves}):
    row = rows[n % len(rows)]
    row.url = urls[(n // len(rows) + n) % 2]
    row.save()
print(json.dumps([time.monotonic() - begin, {{row.name: row.url for row in rows}}]))
"""


@pytest.mark.alone
@pytest.mark.fault("1,000 saves at once")
def test_thousand_saves__rounds_run_and_last_save_shows(deploy, verdict):
    interval, saves, count = 4, 1_000, 50
    deployment = deploy(interval=interval)
    good = ChaosProxy("good")
    bad = ChaosProxy("bad", errors=("this is the other proxy",))
    deployment.proxies.update(good=good, bad=bad)
    names = [f"p{n:02}" for n in range(count)]
    deployment.add_rows(dict.fromkeys(names, good.url))
    deployment.start()
    expected = {good.url: "ok", bad.url: "unhealthy"}
    with Poller(deployment) as poller:
        number = deployment.snapshot()["number"]
        poller.wait_until(lambda p: p.snapshot["number"] > number, 2 * interval, "a round by beat")
        begin = time.monotonic()
        took, urls = json.loads(deployment.python(_SAVES.format(urls=[good.url, bad.url], saves=saves)))
        saved = time.monotonic()
        right = {name: expected[url] for name, url in urls.items()}
        assert set(right.values()) == {"ok", "unhealthy"}
        settled = poller.wait_until(
            lambda p: p.statuses == right, 2 * interval, "the last saves are shown", since=saved
        )
        # A round that began before the last save must not undo it. So wait until two more have ended.
        for _ in range(2):
            checked_at = poller.polls[-1].snapshot["checked_at"]
            poller.wait_until(
                lambda p, last=checked_at: p.snapshot["checked_at"] > last, 2 * interval, "a round"
            )
        end = time.monotonic()
    assert {tuple(sorted(p.statuses.items())) for p in poller.between(saved + settled)} == {
        tuple(sorted(right.items()))
    }
    poller.check(dict.fromkeys(names, ("ok", *["unknown", "unhealthy", "unknown", "ok"] * saves)))
    seen = {p.snapshot["checked_at"]: p.at for p in reversed(poller.between(begin, end))}
    times = sorted(seen.values())  # the first is of the round before the saves
    longest = max(b - a for a, b in pairwise(times))
    assert longest < 1.5 * interval, f"no round for {longest:.1f} s"
    rounds = len(times) - 1
    probes = sum(begin <= a.begin <= end for proxy in (good, bad) for a in proxy.requests)
    checks = probes - rounds * count
    tasks = sum("check end token=" in line for line in deployment.worker.log_text().splitlines())
    # One task takes all pending proxies. Meanwhile the next task may be sent.
    assert tasks <= saves / 20, f"{tasks} tasks for {saves} saves"
    assert checks < saves, f"{checks} probes for {saves} saves, not counting {rounds} rounds"
    verdict(
        f"{len(poller.polls)} polls, saved in {took:.1f} s, {tasks} tasks and {checks} probes not counting "
        f"{rounds} rounds, longest gap between rounds {longest:.1f} s, last saves shown after {settled:.1f} s"
    )


_HEARTBEAT = """
import time
from proxyhealth.models import WorkspaceProxy
row = WorkspaceProxy.objects.get(name="silent")
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    row.save()
    time.sleep(0.25)
"""


@pytest.mark.fault("a silent proxy saved constantly")
def test_silent_proxy_saved_constantly__rounds_run(deploy, verdict):
    """Each check of it occupies a process for as long as the timeout, and rounds need processes, too."""
    interval, seconds = 4, 20
    deployment = deploy(interval=interval, timeout=1, env={"PROXYHEALTH_SHARD_SIZE": 3})
    silent = deployment.add("silent")
    for n in range(5):
        deployment.add(f"p{n}")
    silent.be_silent()
    deployment.start()
    with Poller(deployment) as poller:
        poller.wait_until(lambda p: not p.stale, 2 * interval, "a round")
        begin = time.monotonic()
        deployment.python(_HEARTBEAT.format(seconds=seconds))
        end = time.monotonic()
    seen = {p.snapshot["checked_at"]: p.at for p in reversed(poller.between(begin, end))}
    longest = max(b - a for a, b in pairwise([*sorted(seen.values()), end]))
    assert longest < 2 * interval, f"no round for {longest:.1f} s"
    assert not any(p.stale for p in poller.between(begin, end))
    poller.check({"silent": "unreachable", **{f"p{n}": "ok" for n in range(5)}})
    verdict(
        f"{len(poller.polls)} polls, {len(seen)} rounds in {end - begin:.0f} s, "
        f"longest gap {longest:.1f} s (limit {2 * interval} s)"
    )
