"""The parts of the deployment that a web server needs, each examined within a time limit."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.db import connections

from proxyhealth import isolation
from proxyhealth.models import WorkspaceProxy
from proxyhealth.storage import reader
from proxyhealth.storage.client import open_cache
from proxyhealth.texts import clean, without_passwords
from proxyhealth.utils import PerProcess

logger = logging.getLogger(__name__)

# In seconds:
LIMIT = 0.5  # for each part; Kubernetes waits for a second by default
_FRESH = 1.0  # time for which all requests share a result


class Part(NamedTuple):
    """The result of one part. ``message`` and ``facts`` are for everybody, ``error`` is for the log.

    ``since`` is the time at which this process first saw that the part failed.
    """

    ok: bool
    message: str = ""
    facts: Mapping[str, Any] = {}
    error: str = ""
    since: datetime | None = None


class _NotAsItShouldBe(Exception):
    """A part that responds, with a reason for everybody."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts


def examine_database() -> Mapping[str, Any]:
    try:
        # Our table, not only SELECT 1: before the migrations, the process is not ready either.
        WorkspaceProxy.objects.primary().exists()
    finally:
        connections.close_all()  # those of this thread
    return {}


def examine_cache() -> Mapping[str, Any]:
    if isolation.current() is None:  # in a test, a fake snapshot stands for the cache
        with open_cache() as cache:
            cache.client.time()
    return {}


def _examine_snapshot() -> Mapping[str, Any]:
    snapshot = reader.read()
    facts = {"age_seconds": None if snapshot.age is None else round(snapshot.age, 1)}
    if snapshot.fault:
        served = "" if reader.has_nothing_to_serve() else " The last statuses are served."
        raise _NotAsItShouldBe(f"It cannot be read from the cache.{served}", **facts)
    if snapshot.age is None:
        raise _NotAsItShouldBe("No full round has ended yet.", **facts)
    if snapshot.stale:
        raise _NotAsItShouldBe("It is stale. The health page says why.", **facts)
    return facts


class _Check:
    """A part and its last result. Only one thread at a time examines it, also if the part hangs."""

    def __init__(self, name: str, examine: Callable[[], Mapping[str, Any]], is_logged: bool = True) -> None:
        self.name = name
        self._examine = examine
        self._is_logged = is_logged
        self._lock = threading.Lock()
        self._future: Future[Part] | None = None
        self._fresh_until = 0.0  # by the monotonic clock
        self._failed_since: datetime | None = None
        self.deadline = 0.0

    def begin(self) -> Future[Part]:
        """Return the last result, or the one that comes."""
        with self._lock:
            future, now = self._future, time.monotonic()
            if future is None or (future.done() and now >= self._fresh_until):
                self._future, self.deadline = future, _ = Future[Part](), now + LIMIT
                future.set_running_or_notify_cancel()  # no caller can cancel it for the others
                name = f"proxyhealth readiness {self.name}"
                try:
                    threading.Thread(target=self._run, args=(future,), name=name, daemon=True).start()
                except RuntimeError as error:  # no more threads
                    future.set_result(_failed(error))
        return future

    def _run(self, future: Future[Part]) -> None:
        try:
            part = Part(True, facts=self._examine())
        except _NotAsItShouldBe as error:
            part = Part(False, str(error), error.facts)
        except Exception as error:
            part = _failed(error)
        late = time.monotonic() - self.deadline
        if part.ok and late > 0:
            part = part._replace(ok=False, message=f"It took {LIMIT + late:.1f} s.")
        self._fresh_until = time.monotonic() + _FRESH
        future.set_result(part)

    def result(self, future: Future[Part]) -> Part:
        """Return the result of ``future``, without waiting for it. Log a change, if it is logged."""
        part = future.result() if future.done() else Part(False, f"It does not respond within {LIMIT} s.")
        with self._lock:
            was_ok = self._failed_since is None
            if was_ok or part.ok:
                self._failed_since = None if part.ok else datetime.now(UTC)
            part = part._replace(since=self._failed_since)
        if not self._is_logged:
            return part
        if part.ok and not was_ok:
            logger.info("ready again part=%s", self.name)
        elif was_ok and not part.ok:
            logger.warning("not ready part=%s error=%s", self.name, json.dumps(part.error or part.message))
        return part


def _failed(error: Exception) -> Part:
    text = clean(without_passwords(error) or type(error).__name__, 300)
    return Part(False, "It cannot be used. The log has the error.", error=text)


_Futures = Mapping[_Check, Future[Part]]


class Examination:
    """Parts by name, each with the function that examines it. All are examined at the same time."""

    def __init__(
        self, functions: Mapping[str, Callable[[], Mapping[str, Any]]], *, is_logged: bool = True
    ) -> None:
        self._checks = PerProcess(
            lambda: [_Check(name, function, is_logged) for name, function in functions.items()]
        )
        # Drops the results of this process, for tests.
        self.forget = self._checks.reset

    def results(self) -> dict[str, Part]:
        """Return the result of each part by its name, after at most ``LIMIT`` seconds."""
        futures = self._begin()
        wait(*_pending(futures))
        return _results(futures)

    async def aresults(self) -> dict[str, Part]:
        """Do the same without blocking the event loop."""
        futures = self._begin()
        pending, seconds = _pending(futures)
        if pending:
            await asyncio.wait([asyncio.wrap_future(future) for future in pending], timeout=seconds)
        return _results(futures)

    def _begin(self) -> _Futures:
        return {check: check.begin() for check in self._checks.value}


def _pending(futures: _Futures) -> tuple[list[Future[Part]], float]:
    """Return the results that may come in time, and the seconds for which to wait for them."""
    # Nobody waits for a part that hangs: the memory of its future would grow with each request.
    now = time.monotonic()
    pending = {future: check.deadline - now for check, future in futures.items() if not future.done()}
    pending = {future: seconds for future, seconds in pending.items() if seconds > 0}
    return list(pending), max(pending.values(), default=0)


def _results(futures: _Futures) -> dict[str, Part]:
    return {check.name: check.result(future) for check, future in futures.items()}


_EXAMINE = {"database": examine_database, "cache": examine_cache, "snapshot": _examine_snapshot}

NAMES = tuple(_EXAMINE)

_examination = Examination(_EXAMINE)

examine, aexamine, forget = _examination.results, _examination.aresults, _examination.forget


def required_parts() -> set[str]:
    """Return the names of the parts without which this process cannot do its work.

    The cache is not one of them: without it, processes serve their last snapshot, or the last confirmed
    statuses from the database. Neither is the age of the snapshot, which is the same in all processes: to
    take all of them away would end a service that works.
    """
    return {"database", "snapshot"} if reader.has_nothing_to_serve() else {"database"}
