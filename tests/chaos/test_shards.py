"""A process is killed during a round whose shards two workers share."""

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
    """Two workers with one process each, and twelve proxies in shards of three. One proxy is silent."""
    deployment = deploy(
        interval=INTERVAL, timeout=2, workers=2, concurrency=1, env={"PROXYHEALTH_SHARD_SIZE": 3}
    )
    for name in NAMES:
        deployment.add(name, traced=True)
    deployment.proxies[SILENT].be_silent()
    deployment.start()
    return deployment


def make_unhealthy(deployment):
    """Make all proxies but the silent one unhealthy. Return the number of requests to each so far."""
    for proxy in deployment.proxies.values():
        if proxy.name != SILENT:
            proxy.report_errors("something is wrong now")
    return {name: len(proxy.requests) for name, proxy in deployment.proxies.items()}


def wait_for_end_of_round(poller):
    """Wait until a round has ended, so that changes apply to the whole next one."""
    checked_at = poller.polls[-1].snapshot["checked_at"] if poller.polls else ""
    poller.wait_until(lambda p: p.snapshot["checked_at"] > checked_at, LIMIT, "a round ends")


TRUTH = {**dict.fromkeys(NAMES, ("ok", "unhealthy")), SILENT: "unreachable"}


def is_correct(poll):
    return not poll.stale and all(
        status == ("unreachable" if name == SILENT else "unhealthy") for name, status in poll.statuses.items()
    )


def phases(poller, since):
    """Return each combination of the proxies' check times since then, with the first poll that shows it."""
    phases = []
    for poll in poller.between(since):
        times = {region["name"]: region["status"]["checked_at"] for region in poll.body["regions"]}
        if not phases or phases[-1][0] != times:
            phases.append((times, poll))
    return phases


@pytest.mark.fault("worker killed during a shard")
def test_worker_killed_in_shard__other_shards_count(deployment, verdict):
    with Poller(deployment) as poller:
        poller.wait_until(lambda p: True, 5, "a poll")
        wait_for_end_of_round(poller)
        before = make_unhealthy(deployment)
        request = deployment.proxies[SILENT].wait_for_request(LIMIT, before[SILENT])
        killed = request.begin
        (lost,) = [worker for worker in deployment.workers if request.pid in worker.pids()]
        (left,) = [worker for worker in deployment.workers if worker is not lost]
        survivors = set(left.pids())
        lost.kill()
        took = poller.wait_until(is_correct, LIMIT, "the snapshot is correct", since=killed)
    assert deployment.proxies[SILENT].requests[-1].pid in survivors
    # What the other worker probed in that round. The next round comes an interval later.
    probed = {
        name
        for name, proxy in deployment.proxies.items()
        for r in proxy.requests[before[name] :]
        if r.pid in survivors and r.begin < killed + INTERVAL / 2
    }
    assert 6 <= len(probed) <= 9, "the workers did not share this round"
    old, shared, whole = phases(poller, killed)
    assert len(set(old[0].values())) == len(set(whole[0].values())) == 1
    # The snapshot got exactly these results, and kept the old ones for the lost shard.
    assert {name for name in NAMES if shared[0][name] != old[0][name]} == probed
    assert len({shared[0][name] for name in probed}) == 1
    assert all(shared[1].statuses[name] == "unhealthy" for name in probed)
    assert all(shared[1].statuses[name] == old[1].statuses[name] for name in set(NAMES) - probed)
    poller.check(TRUTH, lost_shards=True)
    verdict(
        f"{len(poller.polls)} polls, none torn; {len(probed)} proxies updated after "
        f"{shared[1].at - killed:.1f} s, {len(NAMES) - len(probed)} kept their status, "
        f"correct after {took:.1f} s by the other worker (limit {LIMIT} s)"
    )


@pytest.mark.fault("pool child killed during a shard")
def test_child_killed_in_shard__other_shards_count(deployment, verdict):
    with Poller(deployment) as poller:
        poller.wait_until(lambda p: True, 5, "a poll")
        wait_for_end_of_round(poller)
        before = make_unhealthy(deployment)
        request = deployment.proxies[SILENT].wait_for_request(LIMIT, before[SILENT])
        os.kill(request.pid, signal.SIGKILL)
        took = poller.wait_until(is_correct, LIMIT, "the snapshot is correct", since=request.begin)
    old, shared, whole = phases(poller, request.begin)
    assert len(set(old[0].values())) == len(set(whole[0].values())) == 1
    updated = {name for name in NAMES if shared[0][name] != old[0][name]}
    assert len(updated) == 9, "of four shards of three, one was lost"
    assert SILENT not in updated
    assert all(shared[1].statuses[name] == "unhealthy" for name in updated)
    assert all(shared[1].statuses[name] == old[1].statuses[name] for name in set(NAMES) - updated)
    # Usually within a second. But Celery may notice the end only with the next message, which is the tick.
    assert shared[1].at - request.begin < INTERVAL + 1, "the round did not end with the next tick"
    assert not deployment.exited()
    for name in (
        'rounds_total{outcome="incomplete"}',
        'task_runs_total{outcome="failure",task="check_shard"}',
    ):
        assert deployment.metric(f"proxyhealth_{name}") == 1
    poller.check(TRUTH, lost_shards=True)
    verdict(
        f"{len(poller.polls)} polls, none torn; {len(updated)} proxies updated after "
        f"{shared[1].at - request.begin:.1f} s, {len(NAMES) - len(updated)} kept their status, "
        f"correct after {took:.1f} s (limit {LIMIT} s)"
    )
