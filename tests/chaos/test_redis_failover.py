"""A failover of Redis: the old primary lives on as a replica, and keeps its connections open."""

from __future__ import annotations

import time
from typing import NamedTuple

import pytest
import redis

from tests.chaos.deployment import Deployment
from tests.chaos.polling import Poller
from tests.chaos.processes import ProcessGroup
from tests.support.forwarder import Forwarder
from tests.support.ports import free_port
from tests.support.proxies import wait_for

INTERVAL = 3
LIMIT = 20  # seconds until the supervisor has started what ended, and the next round has ended


class Failover(NamedTuple):
    """A deployment whose processes know one address of Redis, and the two servers that it may lead to."""

    deployment: Deployment
    address: Forwarder
    old: redis.Redis
    new: redis.Redis
    new_port: int

    def demote(self) -> None:
        """Make the replica the primary, and the primary its replica."""
        self.new.replicaof("NO", "ONE")
        self.old.replicaof("127.0.0.1", self.new_port)
        assert self.old.role()[0] == b"slave"

    def move_address(self) -> None:
        """Lead new connections to the new primary. Those that are open stay at the old one."""
        self.address.target = self.new_port


def supervise(process: ProcessGroup) -> None:
    """Start the command again whenever it ends, as a supervisor does."""
    process.command = f"while true; do {process.command.removeprefix('exec ')}; sleep 1; done"


@pytest.fixture
def failover(deploy, request):
    """A deployment before the failover. With the parameter "stays", its broker is another Redis."""
    old_port, new_port, broker_port = free_port(), free_port(), free_port()
    env = {
        "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
        "BROKER_URL": f"redis://127.0.0.1:{broker_port}/0",
    }
    deployment = deploy(interval=INTERVAL, env=env if request.param == "stays" else {})
    for name in ("lima", "oslo"):
        deployment.add(name)
    command = deployment.redis.command.replace(f"--port {deployment.redis_port}", "--port {}")
    command += " --repl-diskless-sync-delay 0"
    deployment.redis.command = command.format(old_port)
    replica, broker = [
        ProcessGroup(name, command.format(port), deployment.env, deployment.folder / f"{name}.log")
        for name, port in (("replica", new_port), ("broker", broker_port))
    ]
    deployment.others += [replica, broker]
    for process in [*deployment.workers, *deployment.beats]:
        supervise(process)
    with (
        Forwarder(old_port, deployment.redis_port) as address,
        redis.Redis(port=old_port) as old,
        redis.Redis(port=new_port) as new,
    ):
        broker.start()
        deployment.start()
        replica.start()
        replica.wait_for_log("Ready to accept connections")
        new.replicaof("127.0.0.1", old_port)
        wait_for(lambda: new.info("replication")["master_link_status"] == "up", 10)
        yield Failover(deployment, address, old, new, new_port)


@pytest.mark.fault("Redis fails over in {late} s, broker {failover}")
@pytest.mark.parametrize(
    ("failover", "late"),
    [("moves", 0), ("moves", 2 * INTERVAL), ("stays", 2 * INTERVAL)],
    indirect=["failover"],
)
def test_redis_failover__rounds_go_on_at_new_primary(failover, verdict, late, request):
    deployment = failover.deployment
    web = deployment.web.pid
    with Poller(deployment) as poller:
        failover.demote()
        demoted = time.monotonic()
        wait_for(lambda: time.monotonic() >= demoted + late, late + 1)
        failover.move_address()
        deployment.proxies["lima"].stop()
        took = poller.wait_until(
            lambda poll: poll.statuses["lima"] == "unreachable" and not poll.stale, LIMIT, "lima is down"
        )
        number = deployment.snapshot()["number"]
        poller.wait_until(lambda poll: poll.snapshot["number"] > number + 1, LIMIT, "rounds go on")
    assert failover.new.role()[0] == b"master"
    assert deployment.web.pid == web
    assert not deployment.exited()
    poller.check({"lima": ("ok", "unreachable"), "oslo": "ok"})
    ended = deployment.worker.log_text().count(" ready.") - 1
    if request.node.callspec.params["failover"] == "stays":
        assert ended == 0
        failures = deployment.metric('proxyhealth_rounds_total{outcome="failure"}')
        # Each process of the pool counts its own, with its next round. One of them may not have had one yet.
        assert 0 < failures <= deployment.worker.log_text().count("round failed: ")
    verdict(
        f"{len(poller.polls)} polls, never a wrong status, correct {took:.1f} s after the move "
        f"(limit {LIMIT} s), the worker ended {ended} times"
    )
