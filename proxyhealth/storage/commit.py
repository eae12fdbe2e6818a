"""The snapshot in the Redis cache: how it is read, and how statuses are committed to it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from redis.exceptions import LockError, RedisError, ResponseError

from proxyhealth.conf import conf
from proxyhealth.report import FrozenMapping, ProxyStatus, Snapshot, rfc3339
from proxyhealth.storage.client import Cache, StoreError, open_cache
from proxyhealth.storage.document import (
    HEAD,
    HEAD_BYTES,
    Change,
    Known,
    Outdated,
    Round,
    decode,
    dump,
    merged,
)
from proxyhealth.storage.lease import MAX_ERROR
from proxyhealth.storage.look import Look, TaskRuns, look

logger = logging.getLogger(__name__)

_COMMIT_ATTEMPTS = 100

_LOST = "The cache has lost the snapshot; this is the last that was read."

_SILENT = "The cache does not answer; this is the last that was read."

# Seconds by which a copy may be late before it is old, at the least: as long as an answer usually takes.
_GRACE = 0.5

# Seconds that the others wait for the one who asks the cache, when what they have is old.
_PATIENCE = 1.0

# Seconds that a scrape waits for its turn to ask the cache: no thread is to be lost to one that says nothing.
_TURN = 5.0

# Seconds for which a cache that failed is left alone by the readers of a process.
_RETRY_INTERVAL = 2.0

# Writes a document if nobody has written another one since, and if the round still has its lease.
# KEYS: snapshot, lease, rounds, plan, ticket
# ARGV: beginning of the document that was read, new document, ticket of it; and of a round: ticket of its
#       lease (or empty), outcome, ticket of a full one (or empty), error (or empty), time
_WRITE = f"""
if ARGV[4] ~= '' then
  -- Who did not hear the answer asks again.
  if redis.call('HGET', KEYS[3], 'committed') == ARGV[3] then return 'written' end
  local held = redis.call('GET', KEYS[2])
  if held and held ~= ARGV[4] then return 'superseded' end
  if tonumber(redis.call('HGET', KEYS[3], 'closed') or '0') >= tonumber(ARGV[4]) then return 'superseded' end
end
local head = redis.pcall('GETRANGE', KEYS[1], 0, {HEAD_BYTES})
if type(head) == 'table' then head = '' end
if head ~= ARGV[1] then return 'changed' end
redis.call('SET', KEYS[1], ARGV[2])
-- A replica that was promoted may have missed the tickets that it is told of here.
local known = tonumber(redis.call('GET', KEYS[5]) or '0')
if known < tonumber(ARGV[3]) then redis.call('SET', KEYS[5], ARGV[3]) end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[3], 'committed', ARGV[3])
  redis.call('HINCRBY', KEYS[3], 'count:' .. ARGV[5], 1)
  if redis.call('HGET', KEYS[4], 'ticket') == ARGV[3] then redis.call('DEL', KEYS[4]) end
  if ARGV[7] ~= '' then redis.call('HSET', KEYS[3], 'error', ARGV[7], 'error_at', ARGV[8]) end
end
if ARGV[6] ~= '' then
  redis.call('HSET', KEYS[3], 'full', ARGV[6])
  redis.call('HDEL', KEYS[3], 'offline')
end
return 'written'
"""


class Superseded(StoreError):
    """Another round took the lease over, or a later one was committed: this one may not be any more."""


class Commit(NamedTuple):
    """What a commit did. Not ``complete`` is a snapshot that no full round has been committed to."""

    changes: list[Change]
    complete: bool


# Commits


def commit(
    statuses: Sequence[ProxyStatus],
    ticket: int,
    *,
    removed: Iterable[UUID] = (),
    full_round: Round | None = None,
    lease: int | None = None,
) -> Commit:
    """Merge ``statuses`` into the snapshot in one step, and take ``removed`` out of it.

    What was checked under a higher ticket stays as it is. A round also takes out every proxy that it did
    not find, is counted in the same step, and needs the lease of the round: its own, or that of the
    ``lease`` under which it is committed. Raises ``StoreError``; if it is ``Superseded``, nothing is changed,
    else the answer of the cache may have been lost: to try again does it once.
    """
    removed = list(removed)
    outcome = full_round.outcome if full_round else ""
    of_round = [
        (lease or ticket) if full_round else "",
        outcome,
        ticket if outcome == "success" else "",
        full_round.error[:MAX_ERROR] if full_round else "",
        rfc3339(datetime.now(UTC)),
    ]
    with open_cache() as cache, _turn(cache):
        keys = [cache.key(name) for name in ("snapshot", "round", "rounds", "plan", "ticket")]
        for _ in range(_COMMIT_ATTEMPTS):
            value = _get(cache.client, keys[0])
            try:
                document, changes = merged(value, statuses, ticket, removed, full_round)
            except Outdated:
                raise Superseded("a later round was committed before this one") from None
            head = (value or b"")[: HEAD_BYTES + 1]
            complete = document.complete
            body = dump(document)
            del document, value  # they are large, and so is what is sent now
            answer = cache.client.eval(_WRITE, len(keys), *keys, head, body, ticket, *of_round)
            if answer == b"superseded":
                raise Superseded("another round has begun while this one ran")
            if answer == b"written":
                return Commit(changes, complete)
            # Somebody else committed in between: merge into theirs.
    raise StoreError(f"the snapshot changed under each of {_COMMIT_ATTEMPTS} attempts to commit to it")


@contextmanager
def _turn(cache: Cache) -> Iterator[None]:
    """One committer after the other: with a large snapshot, all but one would only lose their work.

    It is the write that keeps the snapshot whole, so who gets no turn in time goes on without.
    """
    lock = cache.client.lock(cache.key("commit"), timeout=10, sleep=0.01, thread_local=False)
    acquired = lock.acquire(blocking_timeout=10)
    try:
        yield
    finally:
        if acquired:
            with suppress(LockError, RedisError):  # it took longer than its turn, or is away; all is written
                lock.release()


def _get(client: Any, key: str) -> bytes | None:
    try:
        value: bytes | None = client.get(key)
    except ResponseError as error:
        logger.error("there is something else under the key of the snapshot: %s", error)
        return None
    return value


# Reads


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
        self._ticket = 0  # of its last full round
        self._fresh_until: float | None = None
        self._found: Snapshot | None = None  # what is in the cache
        self._copy: Snapshot | None = None  # the same, and what the cache has lost
        self._known = Known()  # its proxies
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
        patience = _PATIENCE if self._is_old() else 0.0
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
        if not self._lock.acquire(timeout=_TURN):
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
            snapshot, ticket, self._known = decode(found.document, self._known)
            snapshot = self._found = self._dated(snapshot, ticket, found.now)
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
            self._copy = self._dated(self._copy, self._ticket, found.now)
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

    def _dated(self, snapshot: Snapshot, ticket: int, now: float) -> Snapshot:
        """``snapshot`` with the moment at which it turns stale, whatever the clocks do from now on.

        Its age is told by the clock of the cache alone, which its ticket is from; from the first look at it
        on it only grows.
        """
        if snapshot.stale_at and snapshot.checked_at:
            age = max(0.0, now - ticket / 1e6)
            left = (snapshot.stale_at - snapshot.checked_at).total_seconds() - age
            fresh_until = time.monotonic() + left
            before = self._fresh_until if ticket == self._ticket else None
            # It grows no younger; and what differs by less than this is the way to the cache.
            if before is not None and fresh_until > before - 0.1:
                fresh_until = before
            self._ticket, self._fresh_until = ticket, fresh_until
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
