"""A deployment whose statuses change all the time, random faults in it, and the comparison afterwards."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import redis
from celery import Celery

from tests.chaos.commits import Commits
from tests.chaos.deployment import Deployment
from tests.chaos.processes import ProcessGroup
from tests.chaos.random_fleet import RandomFleet
from tests.chaos.steps import LOSSES, STEPS
from tests.support.proxies import wait_for

STEP_TIMEOUT = 2.0  # seconds until a process should have reached a step
QUIET_TIMEOUT = 30.0  # seconds until all is written and sent after the last fault

_ADD_ROWS = """
import json, sys
from proxyhealth.models import WorkspaceProxy
urls = json.loads({urls!r})
WorkspaceProxy.objects.bulk_create([WorkspaceProxy(name=name, url=url) for name, url in urls.items()])
print(json.dumps([str(proxy.pk) for proxy in WorkspaceProxy.objects.order_by("name")]))
"""

# A signal whose process was killed is due again a minute later, or more: let this time be over.
_WAIT_FOR_SIGNALS = """
import time
from django.utils.timezone import now
from proxyhealth.models import Transition
due = Transition.objects.filter(signal_due_at__isnull=False)
due.update(signal_due_at=now())
end = time.monotonic() + {seconds}
while left := due.count():
    assert time.monotonic() < end, f"{{left}} signals are not sent, such as {{due.values()[0]}}"
    time.sleep(0.1)
"""

_READ_HISTORY = """
import json
from proxyhealth.models import Gap, Transition, Watch
fields = "pk", "proxy_uuid", "token", "before", "after", "at", "watched", "signal_due_at"
print(json.dumps({
    "transitions": list(Transition.objects.order_by("pk").values(*fields)),
    "gaps": list(Gap.objects.order_by("token").values("start", "end", "why", "token", "microseconds")),
    "watch": list(Watch.objects.values("token", "watched")),
}, default=str))
"""


class HistoryChaos:
    """Workers with and without children, beat, and requests for checks, while ``running()``."""

    def __init__(
        self, deployment: Deployment, rng: random.Random, *, count: int = 30, persistent: bool = True
    ) -> None:
        self.deployment = deployment
        self.random = rng
        self.persistent = persistent
        self.steps = Path(deployment.env["STEP_FILE"])
        self.fleet = RandomFleet(count, random.Random(rng.random()))
        self.commits = Commits(deployment.redis_port)
        self.ids: list[str] = []
        self.faults: Counter[str] = Counter()
        self._over = threading.Event()
        solo = deployment.workers[-1]
        solo.command = f"{solo.command} --pool solo"
        if persistent:
            # Without "everysec", which may delay a write, Redis answers only once the file has it.
            deployment.redis.command = deployment.redis.command.replace(
                "--appendonly no", "--appendonly yes --appendfsync no"
            )

    @contextmanager
    def running(self) -> Iterator[Self]:
        deployment = self.deployment
        self.ids = json.loads(deployment.python(_ADD_ROWS.format(urls=json.dumps(self.fleet.urls))))
        deployment.start_redis()
        with ExitStack() as stack:
            stack.enter_context(self.fleet)
            stack.enter_context(self.commits)
            for process in (*deployment.workers, *deployment.beats):
                process.start()
            requests = threading.Thread(target=self._request_checks, daemon=True)
            requests.start()
            stack.callback(requests.join, 10)
            stack.callback(self._over.set)
            wait_for(lambda: self.commits.epochs[0].documents, 30, "a first commit")
            yield self

    def _request_checks(self) -> None:
        """Request checks of some proxies, as saves do, several a second."""
        rng = random.Random(self.random.random())
        app = Celery(broker=self.deployment.env["REDIS_URL"])
        app.conf.broker_transport_options = {"socket_timeout": 1, "socket_connect_timeout": 1}
        while not self._over.wait(rng.uniform(0.05, 0.4)):
            some = rng.sample(self.ids, rng.randint(1, 4))
            with suppress(Exception):  # while Redis is down
                app.send_task("proxyhealth.tasks.check_proxies", (some,), retry=False, ignore_result=True)
        app.close()

    # Faults

    @property
    def kills(self) -> int:
        return sum(number for fault, number in self.faults.items() if fault.startswith("kill"))

    def kill_at(self, step: str) -> bool:
        """Kill the next process that reaches ``step``. Return False if none does so in time."""
        return self._arm(f"kill {step} 1", step)

    def lose_reply(self, step: str, times: int) -> bool:
        return self._arm(f"lose {step} {times}", step)

    def _arm(self, fault: str, step: str) -> bool:
        new = self.steps.with_suffix(".new")
        new.write_text(fault)
        new.replace(self.steps)
        end = time.monotonic() + STEP_TIMEOUT
        while self.steps.exists() and time.monotonic() < end:
            time.sleep(0.005)
        with suppress(FileNotFoundError):
            self.steps.unlink()
            return False
        self.faults[fault.rpartition(" ")[0]] += 1
        return True

    def kill_any(self) -> bool:
        """Kill a child of the pool, or a whole worker, at a random moment."""
        time.sleep(self.random.uniform(0, 0.4))
        worker = self.random.choice(self.deployment.workers)
        children = worker.children()
        if children and self.random.random() < 0.6:
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(children), signal.SIGKILL)
            self.faults["kill a child"] += 1
        else:
            worker.kill()
            self.faults["kill a worker"] += 1
        return True

    def _revive(self) -> None:
        for worker in self.deployment.workers:
            if worker.exited:
                worker.kill()
            if not worker.is_running:
                worker.start()

    def restart_redis(self) -> bool:
        """Kill Redis, and start it again, with its data or empty."""
        time.sleep(self.random.uniform(0, 0.4))
        workers = [worker for worker in self.deployment.workers if worker.is_running]
        self.deployment.redis.kill()
        self.commits.lost_redis()
        with _stopped(workers):  # so that the monitor is the first client
            self.deployment.start_redis()
            self.commits.reconnect(emptied=not self.persistent)
        self.faults["restart Redis"] += 1
        return True

    def wait_for_round(self, documents: int = 1) -> None:
        """Wait for a full round in the newest Redis, and for so many documents."""

        def has_round() -> bool:
            found = self.commits.epochs[-1].documents
            return len(found) >= documents and bool(found[-1]["ticket"])

        wait_for(has_round, QUIET_TIMEOUT, "a full round")

    def lock_database(self) -> bool:
        """Keep all others from writing for longer than they wait."""
        connection = sqlite3.connect(self.deployment.database, timeout=10, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(self.random.uniform(0.7, 2.0))
        connection.execute("ROLLBACK")
        connection.close()
        self.faults["lock the database"] += 1
        return True

    def cause(self, kills: int, seconds: float, outage: Callable[[], bool] | None = None) -> None:
        """Kill up to ``kills`` processes in that time, with outages among them.

        Half of them die at each step in turn, the others at any moment.
        """
        end = time.monotonic() + seconds
        todo: list[Callable[[], bool]] = []
        while self.kills < kills and time.monotonic() < end:
            if not todo:
                todo = [lambda step=step: self.kill_at(step) for step in STEPS]  # type: ignore[misc]
                todo += [self.kill_any] * len(STEPS)
                todo += [
                    lambda step=step: self.lose_reply(step, self.random.randint(1, 3))  # type: ignore[misc]
                    for step in LOSSES
                ]
                todo += [self.restart_redis, outage or self.lock_database]
                self.random.shuffle(todo)
            todo.pop()()
            self._wait_for_commits()

    def _wait_for_commits(self) -> None:
        """Start dead workers, and wait until one has committed: the next fault is to hit one that works."""
        documents = self.commits.epochs[-1].documents
        before = len(documents)
        end = time.monotonic() + STEP_TIMEOUT
        while len(documents) == before and time.monotonic() < end:
            self._revive()
            time.sleep(0.05)

    # The end

    def settle(self) -> dict[str, Any]:
        """Let all proxies be ``ok``, wait until nothing is left to write or send, and return the history."""
        self._revive()
        self.fleet.settle()
        self._over.set()
        wait_for(self._is_ok, QUIET_TIMEOUT, "all proxies are ok")
        wait_for(self._is_recorded, QUIET_TIMEOUT, "the outbox is empty")
        self.deployment.python(_WAIT_FOR_SIGNALS.format(seconds=QUIET_TIMEOUT))
        self.deployment.beat.kill()
        wait_for(self._is_quiet, QUIET_TIMEOUT, "the workers have nothing to do")
        for worker in self.deployment.workers:
            worker.kill()
        history: dict[str, Any] = json.loads(self.deployment.python(_READ_HISTORY))
        return history

    def _is_ok(self) -> bool:
        documents = self.commits.epochs[-1].documents
        return bool(documents) and {*documents[-1]["judgements"]["status"]} == {"ok"}

    def _is_recorded(self, *keys: str) -> bool:
        with redis.Redis(port=self.deployment.redis_port) as client:
            return not client.exists("project:1:proxyhealth:outbox", *keys)

    def _is_quiet(self) -> bool:
        """Return True if no task waits, and none has committed anything for a while."""
        documents = self.commits.epochs[-1].documents
        before = len(documents)
        time.sleep(0.7)
        return self._is_recorded("celery") and len(documents) == before

    def signals(self) -> list[str]:
        path = Path(self.deployment.env["SIGNALS_FILE"])
        return path.read_text().splitlines() if path.exists() else []


@contextmanager
def _stopped(workers: list[ProcessGroup]) -> Iterator[None]:
    for worker in workers:
        _signal_all(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            _signal_all(worker, signal.SIGCONT)


def _signal_all(worker: ProcessGroup, number: int) -> None:
    with suppress(ProcessLookupError):  # it has killed itself at a step
        os.killpg(worker.pid, number)
