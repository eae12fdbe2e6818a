"""A round in shards, over two workers, of which a part is killed."""

from __future__ import annotations

import os
import signal
import time

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
        lost_pids = set(lost.pids())
        survivors = set(left.pids())
        lost.kill()

        # What the other worker found out in this very round is there before the next one.
        def of_this_round():
            found = asked_since(deployment, before)
            assert all(len(pids) <= 1 for pids in found.values()), "the next round has begun"
            return {name for name, pids in found.items() if set(pids) & survivors}

        def shows_them(poll):
            found = of_this_round()
            # The process that was killed may have got through with whole shards before.
            return len(found) >= 3 and all(poll.statuses[name] == "unhealthy" for name in found)

        there = poller.wait_until(shows_them, INTERVAL, "the other shards' results are in the snapshot")
        this_round = time.monotonic()
        unasked = [
            name for name, pids in asked_since(deployment, before).items() if not set(pids) & survivors
        ]
        shard = {name for name, pids in asked_since(deployment, before).items() if set(pids) & lost_pids}
        took = poller.wait_until(all_right, LIMIT, "all is right", since=killed)
        assert deployment.proxies[SILENT].asked[-1].pid in survivors
    for poll in poller.between(killed, this_round):
        kept = [name for name in unasked if name != SILENT and name not in shard]
        assert all(poll.statuses[name] == "ok" for name in kept), poll
    poller.check(TRUTH, lost_shards=True)
    verdict(
        f"{len(poller.polls)} polls, none torn, the other shards there after {there:.1f} s, {len(unasked)} "
        f"proxies kept their status, right after {took:.1f} s by the worker that is left (limit {LIMIT} s)"
    )


@pytest.mark.fault("pool child killed in a shard")
def test_child_killed_in_a_shard__it_is_run_again(deployment, verdict):
    with Poller(deployment) as poller:
        poller.wait_until(lambda p: True, 5, "a poll")
        after_a_round(deployment, poller)
        before = turn_bad(deployment)
        asked = deployment.proxies[SILENT].wait_for_request(LIMIT, before[SILENT])
        assert (
            len(set(filter(None, (pids[0] for pids in asked_since(deployment, before).values() if pids))))
            == 2
        ), "one process ran all shards"
        os.kill(asked.pid, signal.SIGKILL)
        # The same round asks again, by itself: the other proxies' shards are not run again.
        again = deployment.proxies[SILENT].wait_for_request(INTERVAL, before[SILENT] + 1)
        took = poller.wait_until(all_right, LIMIT, "all is right", since=asked.begin)
        others = [name for name, pids in asked_since(deployment, before).items() if len(pids) == 1]
        assert len(others) >= 9, f"only {others} were not asked again: that was a whole round"
    assert not deployment.ended()
    poller.check(TRUTH, lost_shards=True)
    verdict(
        f"{len(poller.polls)} polls, none torn, asked again after {again.begin - asked.begin:.1f} s, "
        f"right after {took:.1f} s (limit {LIMIT} s)"
    )
