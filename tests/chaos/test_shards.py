"""A round in shards, over two workers, of which a part is killed."""

from __future__ import annotations

import os
import signal

import pytest

from tests.chaos.polling import Poller

INTERVAL = 5
LIMIT = 2 * INTERVAL
NAMES = [f"p{n:02}" for n in range(12)]
SILENT = "p05"


@pytest.fixture
def deployment(deploy):
    """Two workers with a process each, and twelve proxies in shards of three; one is silent."""
    deployment = deploy(
        interval=INTERVAL, timeout=2, workers=2, concurrency=1, env={"PROXYHEALTH_SHARD_SIZE": 3}
    )
    for name in NAMES:
        deployment.add(name, traced=True)
    deployment.proxies[SILENT].be_silent()
    deployment.start()
    return deployment


def turn_bad(deployment):
    """From now on every proxy that is asked is another one than before."""
    for proxy in deployment.proxies.values():
        if proxy.name != SILENT:
            proxy.report_errors("something is wrong now")
    return {name: len(proxy.asked) for name, proxy in deployment.proxies.items()}


def after_a_round(deployment, poller):
    """When a round has ended, so that the next one is whole."""
    checked_at = poller.polls[-1].snapshot["checked_at"] if poller.polls else ""
    poller.wait_until(lambda p: p.snapshot["checked_at"] > checked_at, LIMIT, "a round ends")


def asked_since(deployment, before):
    """Who was asked, by which process, since ``before``."""
    return {name: [a.pid for a in proxy.asked[before[name] :]] for name, proxy in deployment.proxies.items()}


TRUTH = {**dict.fromkeys(NAMES, ("ok", "unhealthy")), SILENT: "unreachable"}


def all_right(poll):
    return not poll.stale and all(
        status == ("unreachable" if name == SILENT else "unhealthy") for name, status in poll.statuses.items()
    )


def phases(poller, since):
    """What was seen since then: every combination of when the proxies were checked, with its first poll."""
    found = []
    for poll in poller.between(since):
        times = {region["name"]: region["status"]["checked_at"] for region in poll.body["regions"]}
        if not found or found[-1][0] != times:
            found.append((times, poll))
    return found


@pytest.mark.fault("worker killed in a shard")
def test_worker_killed_in_a_shard__the_others_count_and_the_rest_follows(deployment, verdict):
    with Poller(deployment) as poller:
        poller.wait_until(lambda p: True, 5, "a poll")
        after_a_round(deployment, poller)
        before = turn_bad(deployment)
        asked = deployment.proxies[SILENT].wait_for_request(LIMIT, before[SILENT])
        killed = asked.begin
        (lost,) = [worker for worker in deployment.workers if asked.pid in worker.pids()]
        (left,) = [worker for worker in deployment.workers if worker is not lost]
        survivors = set(left.pids())
        lost.kill()
        took = poller.wait_until(all_right, LIMIT, "all is right", since=killed)
    assert deployment.proxies[SILENT].asked[-1].pid in survivors
    # What the other worker was told in that round; the next one comes an interval later.
    told = {
        name
        for name, proxy in deployment.proxies.items()
        for a in proxy.asked[before[name] :]
        if a.pid in survivors and a.begin < killed + INTERVAL / 2
    }
    assert 6 <= len(told) <= 9, "the workers did not share this round"
    old, shared, whole = phases(poller, killed)
    assert len(set(old[0].values())) == len(set(whole[0].values())) == 1
    # The snapshot had just that, and for the lost shard what it had before.
    assert {name for name in NAMES if shared[0][name] != old[0][name]} == told
    assert len({shared[0][name] for name in told}) == 1
    assert all(shared[1].statuses[name] == "unhealthy" for name in told)
    assert all(shared[1].statuses[name] == old[1].statuses[name] for name in set(NAMES) - told)
    poller.check(TRUTH, lost_shards=True)
    verdict(
        f"{len(poller.polls)} polls, none torn; {len(told)} proxies renewed after "
        f"{shared[1].at - killed:.1f} s, {len(NAMES) - len(told)} kept their status, "
        f"right after {took:.1f} s by the worker that is left (limit {LIMIT} s)"
    )


@pytest.mark.fault("pool child killed in a shard")
def test_child_killed_in_a_shard__it_is_run_again(deployment, verdict):
    with Poller(deployment) as poller:
        poller.wait_until(lambda p: True, 5, "a poll")
        after_a_round(deployment, poller)
        before = turn_bad(deployment)
        asked = deployment.proxies[SILENT].wait_for_request(LIMIT, before[SILENT])
        others = {
            pid for worker in deployment.workers if asked.pid not in worker.pids() for pid in worker.pids()
        }
        os.kill(asked.pid, signal.SIGKILL)
        # The same round asks again, by itself: the other proxies' shards are not run again.
        again = deployment.proxies[SILENT].wait_for_request(INTERVAL, before[SILENT] + 1)
        took = poller.wait_until(all_right, LIMIT, "all is right", since=asked.begin)
        once = [name for name, pids in asked_since(deployment, before).items() if len(pids) == 1]
        assert len(once) >= 9, f"only {once} were not asked again: that was a whole round"
    shared = [
        a
        for name, proxy in deployment.proxies.items()
        for a in proxy.asked[before[name] :]
        if a.pid in others and a.begin < asked.begin + deployment.timeout
    ]
    assert shared, "one worker ran all shards"
    assert not deployment.ended()
    poller.check(TRUTH, lost_shards=True)
    verdict(
        f"{len(poller.polls)} polls, none torn, asked again after {again.begin - asked.begin:.1f} s, "
        f"right after {took:.1f} s (limit {LIMIT} s)"
    )
