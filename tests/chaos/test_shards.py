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
def test_child_killed_in_a_shard__the_others_count_at_once(deployment, verdict):
    with Poller(deployment) as poller:
        poller.wait_until(lambda p: True, 5, "a poll")
        after_a_round(deployment, poller)
        before = turn_bad(deployment)
        asked = deployment.proxies[SILENT].wait_for_request(LIMIT, before[SILENT])
        os.kill(asked.pid, signal.SIGKILL)
        took = poller.wait_until(all_right, LIMIT, "all is right", since=asked.begin)
    old, shared, whole = phases(poller, asked.begin)
    assert len(set(old[0].values())) == len(set(whole[0].values())) == 1
    renewed = {name for name in NAMES if shared[0][name] != old[0][name]}
    assert len(renewed) == 9, "of four shards of three, one was lost"
    assert SILENT not in renewed
    assert all(shared[1].statuses[name] == "unhealthy" for name in renewed)
    assert all(shared[1].statuses[name] == old[1].statuses[name] for name in set(NAMES) - renewed)
    assert shared[1].at - asked.begin < INTERVAL / 2, "it took a tick to end the round"
    assert not deployment.ended()
    for name in (
        'rounds_total{outcome="incomplete"}',
        'task_runs_total{outcome="failure",task="check_shard"}',
    ):
        assert deployment.metric(f"proxyhealth_{name}") == 1
    poller.check(TRUTH, lost_shards=True)
    verdict(
        f"{len(poller.polls)} polls, none torn; {len(renewed)} proxies renewed after "
        f"{shared[1].at - asked.begin:.1f} s, {len(NAMES) - len(renewed)} kept their status, "
        f"right after {took:.1f} s (limit {LIMIT} s)"
    )
