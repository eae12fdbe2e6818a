"""The snapshot in the Redis cache: how it is read, and how statuses are committed to it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from redis.exceptions import RedisError

from proxyhealth.conf import conf
from proxyhealth.exceptions import StoreError
from proxyhealth.snapshot import Snapshot
from proxyhealth.storage.client import Cache, open_cache
from proxyhealth.storage.document import HEAD, HEAD_BYTES, PreviousLines, decode
from proxyhealth.storage.lease import MAX_LEASE
from proxyhealth.utils import FrozenMapping, parse_rfc3339

logger = logging.getLogger(__name__)


_LOST = "The cache has lost the snapshot; this is the last that was read."

_SILENT = "The cache does not answer; this is the last that was read."

# Seconds by which a copy may be late before it is old, at the least: as long as an answer usually takes.
_GRACE = 0.5

# Seconds that the others wait for the one who asks the cache, when what they have is old.
_TIMEOUT = 1.0

# Seconds that a scrape waits for its turn to ask the cache: no thread is to be lost to one that says nothing.
_SCRAPE_TIMEOUT = 5.0

# Seconds for which a cache that failed is left alone by the readers of a process.
_RETRY_INTERVAL = 2.0


class TaskRuns(NamedTuple):
    """The runs of a Celery task, by how they ended, and how long they took together."""

    success: int = 0
    failure: int = 0
    microseconds: int = 0


class Look(NamedTuple):
    """As the cache gave it; ``now`` is the time by its clock (Unix)."""

    document: bytes = b""  # empty if there is none
    rounds: Mapping[bytes, bytes] = FrozenMapping()
    runs: Mapping[bytes, bytes] = FrozenMapping()
    lease: int = 0  # milliseconds that it has left, if it is above 0
    now: float = 0.0

    @property
    def head(self) -> bytes:
        """How the document begins, which names its commit."""
        return self.document[: HEAD_BYTES + 1]

    @property
    def round_in_progress(self) -> bool:
        # One with more life left than is ever given is from before a clock stepped back.
        return 0 < self.lease <= MAX_LEASE * 1000

    @property
    def tasks(self) -> Mapping[str, TaskRuns]:
        """The runs of each task, by its name."""
        found: dict[str, TaskRuns] = {}
        for key, count in _counts(self.runs).items():
            name, _, what = key.partition(":")
            if what in TaskRuns._fields:
                found[name] = found.get(name, TaskRuns())._replace(**{what: count})
        return FrozenMapping(found)

    @property
    def snapshot_values(self) -> dict[str, Any]:
        """What a snapshot has of the rounds besides the document."""
        counts = _counts(self.rounds).items()
        return {
            "outcomes": FrozenMapping(
                {key.removeprefix("count:"): count for key, count in counts if key.startswith("count:")}
            ),
            "error": self.rounds.get(b"error", b"").decode(errors="replace"),
            "offline": self.rounds.get(b"offline", b"").decode(errors="replace"),
            "error_at": _parse_time(self.rounds.get(b"error_at")),
        }


def look(cache: Cache, whole: bool) -> Look:
    """All that a reader wants to know; of the document the whole, or how it begins.

    So nobody has the statuses of one commit with the counts of another.
    """
    pipe = cache.client.pipeline(transaction=True)
    if whole:
        pipe.get(cache.key("snapshot"))
    else:
        pipe.getrange(cache.key("snapshot"), 0, HEAD_BYTES)
    pipe.hgetall(cache.key("round-stats"))
    pipe.pttl(cache.key("lease"))
    pipe.time()
    pipe.hgetall(cache.key("tasks"))
    *answers, runs = pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, RedisError):
            raise answer
    document, rounds, lease, (seconds, microseconds) = answers
    if isinstance(runs, RedisError):
        runs = {}  # what a task has done is no reason to know nothing of the proxies
    return Look(document or b"", rounds, runs, lease, seconds + microseconds / 1e6)


def _counts(data: Mapping[bytes, bytes]) -> dict[str, int]:
    """Those of the fields that are numbers which Redis can count; a newer version may have others."""
    counts = {}
    for key, value in data.items():
        with suppress(ValueError):
            count = int(value)
            if abs(count) < 1 << 63:
                counts[key.decode()] = count
    return counts


def _parse_time(value: bytes | None) -> datetime | None:
    with suppress(ValueError):
        return parse_rfc3339(value.decode()) if value else None
    return None


def read() -> Snapshot:
    """The snapshot, at most ``READ_INTERVAL`` seconds old. Never raises.

    With the cache out of reach it is the last copy of this process, or an empty one, with the
    ``fault`` that says why.
    """
    return _reader.read()


def read_anew() -> Snapshot:
    """As :func:`read`, but asks the cache now."""
    return _reader.read(now=True)


class Activity(NamedTuple):
    """What is in the cache at one moment; ``tasks`` are the runs of the Celery tasks, by their names."""

    snapshot: Snapshot
    round_in_progress: bool
    tasks: Mapping[str, TaskRuns]


def read_activity() -> Activity:
    """As :func:`read_anew`, but nothing that this process remembers and the cache does not: every process has
    the same. Only with a ``fault`` it is the last that was seen, as it is for who has to wait too long behind
    somebody whom a silent cache does not answer.
    """
    return _reader.read_activity()


def forget() -> None:
    """Drop this process's copy of the snapshot: after a fork, and between tests."""
    global _reader
    _reader = _Reader()


class _Reader:
    """This process's copy of the snapshot."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._source = ""
        self._head = b""  # how the document begins that was read
        self._token = 0  # of its last full round
        self._fresh_until: float | None = None
        self._found: Snapshot | None = None  # what is in the cache
        self._copy: Snapshot | None = None  # the same, and what the cache has lost
        self._known = PreviousLines()  # its proxies
        self._lost = False  # the cache has no full round any more, the copy has
        self._look = Look()  # the last one that told something
        self._served = Snapshot()
        self._late: Snapshot | None = None  # what is served, while the cache says nothing
        self._faulty = False
        self._failed = False  # the last look did
        self._ask_at = float("-inf")

    def read(self, now: bool = False) -> Snapshot:
        if not now and time.monotonic() < self._ask_at:
            return self._served
        # While one thread asks, the others have what is there; if nothing is, they wait, and if it is old,
        # because nobody was here for a while or the cache says nothing, they wait for a moment.
        patience = _TIMEOUT if self._is_old() else 0.0
        if self._lock.acquire(timeout=-1.0 if now or self._copy is None else patience):
            try:
                if now or time.monotonic() >= self._ask_at:
                    self._refresh()
            finally:
                self._lock.release()
        elif self._is_old():
            return self._overdue(self._served)
        return self._served

    def read_activity(self) -> Activity:
        if not self._lock.acquire(timeout=_SCRAPE_TIMEOUT):
            return Activity(self._overdue(self._served), self._look.round_in_progress, self._look.tasks)
        try:
            # Not a copy, however new: of two processes that are asked in turn, the one with the older copy
            # would have counts go back.
            if not self._failed or time.monotonic() >= self._ask_at:
                self._refresh()
            snapshot = self._served
            if snapshot.fault == _LOST:
                snapshot = replace(self._found or Snapshot(), **self._look.snapshot_values)
            return Activity(snapshot, self._look.round_in_progress, self._look.tasks)
        finally:
            self._lock.release()

    def _is_old(self) -> bool:
        return time.monotonic() >= self._ask_at + max(conf.READ_INTERVAL, _GRACE)

    def _overdue(self, served: Snapshot) -> Snapshot:
        """``served``, with the fault that it has while the cache says nothing."""
        late = self._late
        if late is None or late.statuses is not served.statuses:
            late = self._late = served if served.fault else replace(served, fault=_SILENT)
        return late

    def _refresh(self) -> None:
        failed = True
        try:
            self._ask()
            failed = False
        except StoreError as error:
            self._serve_copy(f"The cache cannot be read ({error}); this is the last that was read.")
        except Exception as error:
            if not self._faulty:
                logger.exception("reading the snapshot failed")
            self._serve_copy(f"The snapshot cannot be read ({error}); this is the last that was read.")
        self._late = None
        self._failed = failed
        self._ask_at = time.monotonic() + (_RETRY_INTERVAL if failed else conf.READ_INTERVAL)

    def _ask(self) -> None:
        with open_cache() as cache:
            if cache.source != self._source:
                self._clear()  # what another cache said is not true of this one
                self._source = cache.source
            found = look(cache, whole=False)
            # Both looks are whole in themselves: what is served is of the last one.
            new = found.head not in (b"", self._head)
            if new:
                found = look(cache, whole=True)
        head = found.head
        if head and not HEAD.match(head):
            raise ValueError("it is of another format")
        aged = False
        if new and head:
            snapshot, token, self._known = decode(found.document, self._known)
            snapshot = self._found = self._dated(snapshot, token, found.now)
            self._head = head
            if self._copy and self._copy.checked_at and not snapshot.checked_at:
                # A check of a few came before the first round of a cache that was emptied.
                known = FrozenMapping({**self._copy.statuses, **snapshot.statuses})
                self._copy = replace(
                    self._copy,
                    statuses=known,
                    number=snapshot.number,
                    committed_at=snapshot.committed_at,
                )
                self._lost = True
            else:
                self._copy, self._lost = snapshot, False
        elif not head and self._copy is not None:
            self._found, self._head, self._lost = None, b"", True
        elif self._copy is not None:
            # This machine may have slept, and its clocks with it.
            self._copy = self._dated(self._copy, self._token, found.now)
            aged = self._copy.fresh_until != self._served.fresh_until
        changed = new or aged or found.rounds != self._look.rounds
        self._look = found._replace(document=b"")
        if self._lost:
            self._serve_copy(_LOST)
        elif self._faulty or changed:
            if self._faulty:
                logger.info("the snapshot can be read again")
            self._faulty = False
            self._served = self._with_rounds("")

    def _dated(self, snapshot: Snapshot, token: int, now: float) -> Snapshot:
        """``snapshot`` with the moment at which it turns stale, whatever the clocks do from now on.

        Its age is told by the clock of the cache alone, which its token is from; from the first look at it
        on it only grows.
        """
        if snapshot.stale_at and snapshot.checked_at:
            age = max(0.0, now - token / 1e6)
            left = (snapshot.stale_at - snapshot.checked_at).total_seconds() - age
            fresh_until = time.monotonic() + left
            before = self._fresh_until if token == self._token else None
            # It grows no younger; and what differs by less than this is the way to the cache.
            if before is not None and fresh_until > before - 0.1:
                fresh_until = before
            self._token, self._fresh_until = token, fresh_until
            if fresh_until != snapshot.fresh_until:
                return replace(snapshot, fresh_until=fresh_until)
        return snapshot

    def _serve_copy(self, fault: str) -> None:
        if not self._faulty:
            logger.warning("snapshot stale: %s", fault)
        self._faulty = True
        self._served = self._with_rounds(fault)

    def _with_rounds(self, fault: str) -> Snapshot:
        return replace(self._copy or Snapshot(), fault=fault, **self._look.snapshot_values)


_reader = _Reader()

# A thread of the parent may hold the lock, and in the child nobody would ever release it.
os.register_at_fork(after_in_child=forget)
