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
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any, Self

import redis
from celery import Celery

from tests.chaos.commits import Commits
from tests.chaos.deployment import Deployment
from tests.chaos.random_fleet import RandomFleet
from tests.chaos.steps import LOSSES, STEPS
from tests.support.proxies import wait_for

CYCLE = 10.0  # seconds in which each step should be reached
WHOLE_WORKER = 0.02  # share of random kills: a worker needs seconds to start
MAX_QUEUE = 5  # tasks that wait while all workers are dead
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
    """A worker, beat, and requests for checks, while ``running()``."""

    def __init__(
        self,
        deployment: Deployment,
        rng: random.Random,
        *,
        count: int = 30,
        persistent: bool = True,
        postgresql: Any = None,
    ) -> None:
        self.deployment = deployment
        self.random = rng
        self.persistent = persistent
        self.postgresql = postgresql
        self.folder = Path(deployment.env["STEP_FOLDER"])
        self.fleet = RandomFleet(count, random.Random(rng.random()))
        self.commits = Commits(deployment.redis_port)
        self.ids: list[str] = []
        self.faults: Counter[str] = Counter()
        self._over = threading.Event()
        if postgresql:
            deployment.use_database(postgresql.url())
        if persistent:
            # Without "everysec", which may delay a write, Redis answers only once the file has it.
            deployment.redis.command = deployment.redis.command.replace(
                "--appendonly no", "--appendonly yes --appendfsync no"
            )

    @contextmanager
    def running(self) -> Iterator[Self]:
        deployment = self.deployment
        if self.postgresql:
            deployment.python("from django.core.management import call_command\ncall_command('migrate')")
        self.ids = json.loads(deployment.python(_ADD_ROWS.format(urls=json.dumps(self.fleet.urls))))
        deployment.start_redis()
        with ExitStack() as stack:
            stack.enter_context(self.fleet)
            stack.enter_context(self.commits)
            deployment.worker.start()
            deployment.beat.start()
            requests = threading.Thread(target=self._request_checks, daemon=True)
            requests.start()
            stack.callback(requests.join, 10)
            stack.callback(self._over.set)
            wait_for(lambda: self.commits.epochs[0].documents, 30, "a first commit")
            yield self

    def _request_checks(self) -> None:
        """Request checks of some proxies, as saves do, several a second while a worker takes them."""
        rng = random.Random(self.random.random())
        app = Celery(broker=self.deployment.env["REDIS_URL"])
        app.conf.broker_transport_options = {"socket_timeout": 1, "socket_connect_timeout": 1}
        with redis.Redis(port=self.deployment.redis_port, socket_timeout=1) as client:
            while not self._over.wait(rng.uniform(0.05, 0.3)):
                some = rng.sample(self.ids, rng.randint(1, 4))
                with suppress(Exception):  # while Redis is down
                    if client.llen("celery") < MAX_QUEUE:
                        app.send_task("proxyhealth.tasks.check_proxies", (some,), retry=False)
        app.close()

    # Faults

    @property
    def kills(self) -> int:
        return sum(number for fault, number in self.faults.items() if fault.startswith("kill"))

    def visit_steps(self, kills: int) -> None:
        """Let a process die at each step, or lose replies there, and ``kills`` others at any moment.

        A step at which no process arrives in time is left out.
        """
        self._expire_locks()
        faults = dict.fromkeys(STEPS, "kill 1")
        for step in LOSSES:
            if self.random.random() < 0.3:
                faults[step] = f"lose {self.random.randint(1, 3)}"
        for step, fault in faults.items():
            new = self.folder / "new"
            new.write_text(fault)
            new.replace(self.folder / step)
        end = time.monotonic() + CYCLE
        while time.monotonic() < end and (kills or any(self.folder.iterdir())):
            time.sleep(self.random.uniform(0, CYCLE / 20))
            if kills and self.kill_any():
                kills -= 1
            self._revive()
        for step, fault in faults.items():
            try:
                (self.folder / step).unlink()
            except FileNotFoundError:
                self.faults[f"{fault.split()[0]} {step}"] += 1

    def kill_any(self) -> bool:
        """Kill a child of the pool, or rarely the whole worker. Return False if none is there yet."""
        worker = self.deployment.worker
        if worker.is_running and self.random.random() < WHOLE_WORKER:
            worker.kill()
            self.faults["kill the worker"] += 1
        elif children := worker.children():  # they are replaced at once
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(children), signal.SIGKILL)
            self.faults["kill a child"] += 1
        else:
            return False
        return True

    def _expire_locks(self) -> None:
        """Let the time be over for which a killed process keeps others from sending signals or rechecks."""
        with redis.Redis(port=self.deployment.redis_port) as client:
            client.delete("project:1:proxyhealth:signals", "project:1:proxyhealth:recheck")

    def _revive(self) -> None:
        worker = self.deployment.worker
        if worker.exited:
            worker.kill()
        if not worker.is_running:
            worker.start()

    def restart_redis(self) -> None:
        """Kill Redis, and start it again, with its data or empty."""
        self.deployment.redis.kill()
        self.commits.lost_redis()
        with self._stopped_worker():  # so that the monitor is the first client
            self.deployment.start_redis()
            self.commits.reconnect(emptied=not self.persistent)
        self.faults["restart Redis"] += 1

    @contextmanager
    def _stopped_worker(self) -> Iterator[None]:
        worker = self.deployment.worker
        group = worker.pid if worker.is_running and not worker.exited else None
        if group:
            os.killpg(group, signal.SIGSTOP)
        yield
        if group:
            os.killpg(group, signal.SIGCONT)

    def wait_for_round(self, documents: int = 1) -> None:
        """Wait for a full round in the newest Redis, and for so many documents."""

        def has_round() -> bool:
            self._revive()  # as a supervisor does: Celery may end when it loses its broker
            found = self.commits.epochs[-1].documents
            return len(found) >= documents and bool(found[-1]["ticket"])

        wait_for(has_round, QUIET_TIMEOUT, "a full round")

    def stop_database(self) -> None:
        """Stop PostgreSQL for a while, or lock SQLite for longer than others wait."""
        seconds = self.random.uniform(0.7, 2.0)
        if self.postgresql:
            self.postgresql.stop()
            time.sleep(seconds)
            self.postgresql.start()
        else:
            with closing(sqlite3.connect(self.deployment.database, timeout=10)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                time.sleep(seconds)
                connection.rollback()
        self.faults["stop the database"] += 1

    def cause(self, kills: int, seconds: float) -> None:
        """Kill that many processes in that time, if the machine is fast enough, with outages among them."""
        end = time.monotonic() + seconds
        outages = cycle((self.restart_redis, self.stop_database))
        while self.kills < kills and time.monotonic() < end:
            self.visit_steps(kills=len(STEPS))
            next(outages)()

    # The end

    def settle(self) -> dict[str, Any]:
        """Let all proxies be ``ok``, wait until nothing is left to write or send, and return the history."""
        self._revive()
        self.fleet.settle()
        self._over.set()
        wait_for(self._is_ok, QUIET_TIMEOUT, "all proxies are ok")
        wait_for(self._is_recorded, QUIET_TIMEOUT, "the outbox is empty")
        self._expire_locks()
        self.deployment.python(_WAIT_FOR_SIGNALS.format(seconds=QUIET_TIMEOUT))
        self.deployment.beat.kill()
        wait_for(self._is_quiet, QUIET_TIMEOUT, "the workers have nothing to do")
        self.deployment.worker.kill()
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
