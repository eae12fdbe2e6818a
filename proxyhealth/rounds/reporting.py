"""The signs of life of workers and of beat, which a thread stores in the Redis cache."""

import os
import socket
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

from proxyhealth import __version__, isolation
from proxyhealth.conf import conf
from proxyhealth.exceptions import StoreError
from proxyhealth.rounds import broker
from proxyhealth.storage import presence
from proxyhealth.texts import clean, without_passwords
from proxyhealth.utils import PerProcess

_MAX_TASKS = 20  # that run, with their names
_MAX_PROCESSES = 200


class WorkerReports:
    """The reports of this process about its Celery worker, every ``PERIOD`` seconds from one thread.

    A task of the host may occupy the worker for hours. The thread goes on, and ends with the process.
    """

    def __init__(self) -> None:
        self._id = uuid4().hex
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._consumer: Any = None
        self._seen: dict[str, float] = {}  # the tasks that run, and since when (monotonic)

    def start(self, consumer: Any) -> None:
        """Report this worker from now on. In a test process, do nothing."""
        if isolation.is_decided():
            return
        with self._lock, suppress(RuntimeError):  # no more threads: the next connection tries again
            self._consumer = consumer
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="proxyhealth presence", daemon=True)
                thread.start()
                self._thread = thread

    def stop(self) -> None:
        """Store that the worker was stopped, so that nobody waits until its last sign is old."""
        if self._thread is not None and not self._ended.is_set():
            self._ended.set()
            with suppress(StoreError):
                presence.note_worker(self._id, {**self.describe(self._consumer), "stopped": True})

    def _run(self) -> None:
        while not self._ended.is_set():
            with suppress(Exception):  # the cache, or an attribute that this version of Celery does not have
                presence.note_worker(self._id, self.describe(self._consumer))
            self._ended.wait(presence.PERIOD)

    def describe(self, consumer: Any) -> Mapping[str, Any]:
        """Return what the worker says of itself, as JSON."""
        from celery.worker import state  # web servers do not need it, and it is large

        ours, queues = broker.queues_of_tasks(consumer.app), set(consumer.app.amqp.queues.consume_from)
        pool: Mapping[str, Any] = {}
        with suppress(Exception):  # a pool of the host, or one that is about to end
            pool = consumer.pool.info
        processes = pool.get("processes")
        return {
            "name": str(consumer.hostname),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pool": str(pool.get("implementation", "")).partition(":")[0].rpartition(".")[2],
            "concurrency": pool.get("max-concurrency"),
            "processes": processes[:_MAX_PROCESSES] if isinstance(processes, list) else [],
            "takes": sorted(ours & queues),
            "missing": sorted(ours - queues),
            "connected": consumer.connection is not None,
            "active": len(state.active_requests),
            "tasks": self._tasks(state.active_requests),
            "version": __version__,
        }

    def _tasks(self, requests: Collection[Any]) -> list[list[Any]]:
        """Return the names of the tasks that run, and for how many seconds this thread has seen each."""
        now = time.monotonic()
        running = {request.id: str(request.name) for request in list(requests)}
        self._seen = {id: self._seen.get(id, now) for id in running}
        longest = sorted(running, key=self._seen.__getitem__)
        return [[running[id], round(now - self._seen[id], 1)] for id in longest[:_MAX_TASKS]]


class BeatReports:
    """The reports of this process about its beat, which must not wait for the cache."""

    def __init__(self) -> None:
        self._id = uuid4().hex
        self._begun_at = time.monotonic()
        self._thread: threading.Thread | None = None

    def report(self, values: Mapping[str, Any]) -> None:
        """Store that beat runs, unless the last report is still under way. In a test process, do nothing."""
        if isolation.is_decided() or (self._thread and self._thread.is_alive()):
            return
        self._thread = threading.Thread(
            target=self.store, args=(values,), name="proxyhealth beat", daemon=True
        )
        with suppress(RuntimeError):  # no more threads
            self._thread.start()

    def store(self, values: Mapping[str, Any]) -> None:
        known = {"host": socket.gethostname(), "pid": os.getpid(), "version": __version__}
        known["uptime"] = int(time.monotonic() - self._begun_at)
        with suppress(StoreError):
            presence.note_beat(self._id, {**known, "interval": conf.INTERVAL, **values})


workers = PerProcess(WorkerReports)
beats = PerProcess(BeatReports)


def report_beat(error: Exception | None = None) -> None:
    """Report that beat has sent a tick, or the reason why it could not. Never raise."""
    with suppress(Exception):  # an invalid setting, which the log of beat has
        beats.value.report({"error": clean(without_passwords(error), 300)} if error else {})
