"""Many ask at once: for a round, or by saving."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest

from tests.chaos.fleet import ChaosProxy
from tests.chaos.polling import Poller
from tests.support.proxies import wait_for

CHECK_ALL = "/admin/proxyhealth/workspaceproxy/health/check/"


@pytest.mark.fault("ten forced updates in one round")
def test_ten_forced_updates_in_a_round__one_more_round_follows(deploy, verdict):
    timeout = 3
    deployment = deploy(interval=60, timeout=timeout)  # no tick comes in between
    silent = deployment.add("silent")
    counted = deployment.add("counted")
    silent.be_silent()
    deployment.start()
    with Poller(deployment) as poller:
        rounds = len(counted.asked)
        deployment.post(CHECK_ALL)
        under_way = silent.wait_for_request(5, before=rounds)
        for _ in range(10):
            deployment.post(CHECK_ALL)
        asked = time.monotonic()
        assert under_way.end is None, "the round was over before all had asked"
        wait_for(lambda: len(counted.asked) >= rounds + 2, 3 * timeout, "the round that was asked for begins")
        assert counted.asked[rounds + 1].begin > asked
        # If another one followed, it would begin when this one ends.
        quiet = time.monotonic() + 2 * timeout
        wait_for(lambda: time.monotonic() > quiet, 2 * timeout + 1)
    assert len(counted.asked) == rounds + 2
    assert counted.most_at_once == 1
    poller.check({"silent": "unreachable", "counted": "ok"})
    verdict(f"{len(poller.polls)} polls, exactly one more round followed")


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
def test_thousand_saves__rounds_go_on_and_the_last_save_is_seen(deploy, verdict):
    interval, saves, count = 4, 1_000, 50
    deployment = deploy(interval=interval)
    good = ChaosProxy("good")
    bad = ChaosProxy("bad", errors=("I am the other one",))
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
            lambda p: p.statuses == right, 2 * interval, "the last saves", since=saved
        )
        # A round that began before the last save must not undo it: two more, the last of them to its end.
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
    times = sorted(seen.values())  # the first of them is of the round that ended before the saves
    longest = max(b - a for a, b in pairwise(times))
    assert longest < 1.5 * interval, f"no round for {longest:.1f} s"
    rounds = len(times) - 1
    probes = sum(begin <= a.begin <= end for proxy in (good, bad) for a in proxy.asked)
    checks = probes - rounds * count
    tasks = sum("check end token=" in line for line in deployment.worker.log_text().splitlines())
    # One task takes all that wait; while it does, the next may be sent.
    assert tasks <= saves / 20, f"{tasks} tasks for {saves} saves"
    assert checks < saves, f"{checks} probes, besides those of {rounds} rounds, for {saves} saves"
    verdict(
        f"{len(poller.polls)} polls, saved in {took:.1f} s, {tasks} tasks and {checks} probes besides "
        f"{rounds} rounds, longest gap between rounds {longest:.1f} s, the last saves seen "
        f"after {settled:.1f} s"
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


@pytest.mark.fault("a silent proxy saved all the time")
def test_silent_proxy_saved_all_the_time__does_not_crowd_out_the_rounds(deploy, verdict):
    """Each of its checks takes a process for as long as the timeout, and the round wants processes too."""
    interval, seconds = 6, 30
    deployment = deploy(interval=interval, timeout=2, env={"PROXYHEALTH_SHARD_SIZE": 3})
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
