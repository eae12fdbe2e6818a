"""Workers are killed during a round."""

from __future__ import annotations

import os
import signal

import pytest

from tests.chaos.polling import Poller

INTERVAL = 4
LIMIT = 2 * INTERVAL

TRUTH = {"lima": ("ok", "unreachable"), "oslo": "ok", "silent": "unreachable"}


@pytest.fixture
def deployment(deploy):
    """Two proxies that answer, and a silent one: each round lasts as long as the timeout."""
    deployment = deploy(interval=INTERVAL, concurrency=1)
    for name in ("lima", "oslo", "silent"):
        deployment.add(name, traced=name == "silent")
    deployment.proxies["silent"].be_silent()
    deployment.start()
    return deployment


def in_a_round(deployment):
    """Return whether the worker's last log line about rounds is the start of one."""
    return "round start" in deployment.round_lines()[-1]


def lima_is_down(poll):
    return poll.statuses["lima"] == "unreachable" and not poll.stale


@pytest.mark.fault("worker killed during a round")
def test_worker_killed_in_round__never_wrong(deployment, verdict):
    with Poller(deployment) as poller:
        killed = deployment.proxies["silent"].wait_for_request(2 * INTERVAL).begin
        deployment.worker.kill()
        assert in_a_round(deployment)
        deployment.proxies["lima"].stop()
        deployment.worker.start()
        took = poller.wait_until(lima_is_down, LIMIT, "lima is down", since=killed)
    poller.check(TRUTH)
    verdict(f"{len(poller.polls)} polls, never a wrong status, correct after {took:.1f} s (limit {LIMIT} s)")


@pytest.mark.fault("pool child killed during a round")
def test_child_killed_in_round__never_wrong(deployment, verdict):
    with Poller(deployment) as poller:
        request = deployment.proxies["silent"].wait_for_request(2 * INTERVAL)
        (child,) = deployment.worker.children()
        os.kill(child, signal.SIGKILL)
        assert request.pid == child
        assert in_a_round(deployment)
        deployment.proxies["lima"].stop()
        took = poller.wait_until(lima_is_down, LIMIT, "lima is down", since=request.begin)
    assert not deployment.exited()
    poller.check(TRUTH)
    verdict(f"{len(poller.polls)} polls, never a wrong status, correct after {took:.1f} s (limit {LIMIT} s)")
