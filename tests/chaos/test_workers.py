"""Workers that are killed in a round."""

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
    """Two proxies that answer, and one that makes every round as long as the timeout."""
    deployment = deploy(interval=INTERVAL, concurrency=1)
    for name in ("lima", "oslo", "silent"):
        deployment.add(name, traced=name == "silent")
    deployment.proxies["silent"].be_silent()
    deployment.start()
    return deployment


def in_a_round(deployment):
    """Whether the last that the worker said is that a round begins."""
    return "round start" in deployment.round_lines()[-1]


def lima_is_down(poll):
    return poll.statuses["lima"] == "unreachable" and not poll.stale


@pytest.mark.fault("worker killed in a round")
def test_worker_killed_in_a_round__old_or_new_truth_and_right_again(deployment, verdict):
    with Poller(deployment) as poller:
        killed = deployment.proxies["silent"].wait_for_request(2 * INTERVAL).begin
        deployment.worker.kill()
        assert in_a_round(deployment)
        deployment.proxies["lima"].stop()
        deployment.worker.start()
        took = poller.wait_until(lima_is_down, LIMIT, "lima is down", since=killed)
    poller.check(TRUTH)
    verdict(
        f"{len(poller.polls)} polls, old or new truth throughout, "
        f"right again after {took:.1f} s (limit {LIMIT} s)"
    )


@pytest.mark.fault("pool child killed in a round")
def test_child_killed_in_a_round__old_or_new_truth_and_right_again(deployment, verdict):
    with Poller(deployment) as poller:
        asked = deployment.proxies["silent"].wait_for_request(2 * INTERVAL)
        (child,) = deployment.worker.children()
        os.kill(child, signal.SIGKILL)
        assert asked.pid == child
        assert in_a_round(deployment)
        deployment.proxies["lima"].stop()
        took = poller.wait_until(lima_is_down, LIMIT, "lima is down", since=asked.begin)
    assert not deployment.ended()
    poller.check(TRUTH)
    verdict(
        f"{len(poller.polls)} polls, old or new truth throughout, "
        f"right again after {took:.1f} s (limit {LIMIT} s)"
    )
