"""Receivers of the signal of changed statuses that hang."""

from __future__ import annotations

import sqlite3
import time

import pytest
import redis

from tests.chaos.polling import Poller
from tests.support.proxies import wait_for

INTERVAL = 2

_MAKE_DUE = "UPDATE proxyhealth_transition SET signal_due_at = '2026-01-01' WHERE signal_due_at IS NOT NULL"


@pytest.fixture
def start(deploy, tmp_path):
    """``start()`` starts two proxies and a worker, and waits until a receiver has heard of their statuses."""

    def start(options=""):
        env = {"DJANGO_SETTINGS_MODULE": "tests.chaos.settings_with_receivers", "RECEIVERS": tmp_path}
        deployment = deploy(interval=INTERVAL, concurrency=2, env=env)
        deployment.worker.command += options
        for name in ("lima", "oslo"):
            deployment.add(name)
        deployment.start()
        wait_for(lambda: heard(deployment).count("ok") == 2, 20, "the first statuses")
        return deployment

    return start


def heard(deployment):
    file = deployment.folder / "heard"
    return file.read_text() if file.exists() else ""


@pytest.mark.fault("receiver of a signal: {how}")
@pytest.mark.parametrize("how", ["hang", "stubborn"])
def test_receiver_hangs__others_hear_and_rounds_go_on(start, verdict, how):
    """A stubborn one ignores the soft limit, so that Celery kills its process."""
    deployment = start()
    switch = deployment.folder / "hang"
    switch.write_text(how)
    with Poller(deployment) as poller:
        deployment.proxies["lima"].stop()
        poller.wait_until(lambda poll: poll.statuses["lima"] == "unreachable", 3 * INTERVAL, "lima is down")
        begin = time.monotonic()
        if how == "stubborn":
            wait_for(
                lambda: "Hard time limit (5s) exceeded" in deployment.worker.log_text(), 20, "it is killed"
            )
            let_time_pass(deployment)
        wait_for(lambda: "lima unreachable" in heard(deployment), 20, "the other receiver heard it")
        took = time.monotonic() - begin
    poller.check({"lima": ("ok", "unreachable"), "oslo": "ok"})
    assert not any(poll.stale for poll in poller.polls), "rounds went on"
    switch.unlink()
    wait_for(lambda: let_time_pass(deployment) == 0, 20, "the receiver was called again")
    assert not deployment.exited()
    verdict(f"the other receiver heard after {took:.1f} s, no stale poll of {len(poller.polls)}")


@pytest.mark.fault("receiver of a signal: hangs in a thread")
def test_receiver_hangs_in_thread__rounds_go_on(start, verdict):
    """The pool has no time limits. Its other threads must not hang, too."""
    deployment = start(" --pool threads")
    switch = deployment.folder / "hang"
    switch.write_text("hang")
    with Poller(deployment) as poller:
        deployment.proxies["lima"].stop()
        log = deployment.worker.log_text
        wait_for(lambda: "signal receiver hangs" in log(), 20, "the log names the receiver")
        for _ in range(3):
            let_time_pass(deployment)
            number = deployment.snapshot()["number"]
            wait_for(lambda number=number: deployment.snapshot()["number"] > number, 20, "another round")
    poller.check({"lima": ("ok", "unreachable"), "oslo": "ok"})
    assert not any(poll.stale for poll in poller.polls), "rounds went on"
    switch.unlink()
    wait_for(lambda: let_time_pass(deployment) == 0, 20, "the signal is sent")
    assert "lima unreachable" in heard(deployment)
    verdict(f"no stale poll of {len(poller.polls)}")


def let_time_pass(deployment):
    """End the lock of a killed process, the pauses of signals, and those of receivers that hung.

    Return the number of signals that are left.
    """
    with redis.Redis(port=deployment.redis_port) as client:
        client.delete("project:1:proxyhealth:signals")
        if "unreachable" in heard(deployment):
            client.delete("project:1:proxyhealth:signals:hanging")
    connection = sqlite3.connect(deployment.database, timeout=10)
    with connection:
        left = connection.execute(_MAKE_DUE).rowcount
    connection.close()
    return left
