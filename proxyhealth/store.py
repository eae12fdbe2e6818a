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

from redis.exceptions import LockError, RedisError, ResponseError, WatchError

from proxyhealth.cache import Cache, StoreError, open_cache
from proxyhealth.conf import conf
from proxyhealth.document import HEAD, HEAD_BYTES, Change, Round, decode, dump, merged
from proxyhealth.report import FrozenMapping, ProxyStatus, Snapshot, moment, rfc3339

logger = logging.getLogger(__name__)

_COMMIT_ATTEMPTS = 100

_LOST = "The cache has lost the snapshot; this is the last that was read."

# Seconds for which a cache that failed is left alone by the readers of a process.
_RETRY_INTERVAL = 2.0

# A ticket tells which of two checks began later, whatever the clocks of the workers say: the
# cache's own time, made to go up only.
_TICKET_SCRIPT = """
local time = redis.call('TIME')
local ticket = time[1] * 1000000 + time[2]
local last = tonumber(redis.call('GET', KEYS[1]) or '0')
if ticket <= last then ticket = last + 1 end
redis.call('SET', KEYS[1], string.format('%.0f', ticket))
return string.format('%.0f', ticket)
"""


class Commit(NamedTuple):
    """What a commit did. Not ``complete`` is a snapshot that no full round has been committed to."""

    changes: list[Change]
    complete: bool


# Commits


def take_ticket() -> int:
    """To be taken before the proxies are read: on commit, per proxy, the higher ticket wins.

    Raises ``StoreError``.
    """
    with open_cache() as cache:
        return int(cache.client.eval(_TICKET_SCRIPT, 1, cache.key("ticket")))


def commit(
    statuses: Sequence[ProxyStatus],
    ticket: int,
    *,
    removed: Iterable[UUID] = (),
    full_round: Round | None = None,
) -> Commit:
    """Merge ``statuses`` into the snapshot in one step, and take ``removed`` out of it.

    What was checked under a higher ticket stays as it is. A full round also takes out every
    proxy that it did not find. Raises ``StoreError``; then nothing is changed.
    """
    with open_cache() as cache, _turn(cache):
        key = cache.key("snapshot")
        for _ in range(_COMMIT_ATTEMPTS):
            with cache.client.pipeline() as pipe:
                pipe.watch(key)
                document, changes = merged(_get(pipe, key), statuses, ticket, removed, full_round)
                pipe.multi()
                pipe.set(key, dump(document))
                try:
                    pipe.execute()
                except WatchError:
                    continue  # somebody else committed in between: merge into theirs
            return Commit(changes, complete=document["checked_at"] is not None)
    raise StoreError(f"the snapshot changed under each of {_COMMIT_ATTEMPTS} attempts to commit to it")


@contextmanager
def _turn(cache: Cache) -> Iterator[None]:
    """One committer after the other: with a large snapshot, all but one would only lose their work.

    It is WATCH that keeps the snapshot whole, so who gets no turn in time goes on without.
    """
    lock = cache.client.lock(cache.key("commit"), timeout=10, sleep=0.01, thread_local=False)
    acquired = lock.acquire(blocking_timeout=10)
    try:
        yield
    finally:
        if acquired:
            with suppress(LockError):  # it took longer than its turn
                lock.release()


def _get(pipe: Any, key: str) -> bytes | None:
    try:
        value: bytes | None = pipe.get(key)
    except ResponseError as error:
        logger.error("there is something else under the key of the snapshot: %s", error)
        return None
    return value


# Rounds: one at a time, counted


# How long a round is locked out by one whose process has died; a living one renews its lock.
LOCK_SECONDS = 10.0


@contextmanager
def round_lock(wait: float = 0) -> Iterator[bool]:
    """Keeps other rounds away; yields False, and keeps nobody away, if one is running after ``wait``.

    Raises ``StoreError``.
    """
    with open_cache() as cache:
        lock = cache.client.lock(cache.key("round"), timeout=LOCK_SECONDS, thread_local=False)
        acquired = lock.acquire(blocking=wait > 0, blocking_timeout=wait or None)
    if not acquired:
        yield False
        return
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(lock, over), name="round lock", daemon=True)
    renewing.start()
    try:
        yield True
    finally:
        over.set()
        renewing.join()
        try:
            lock.release()
        except (LockError, RedisError) as error:
            logger.warning("the lock of the round could not be released: %s", error)


def _renew(lock: Any, over: threading.Event) -> None:
    while not over.wait(LOCK_SECONDS / 4):
        try:
            lock.reacquire()
        except (LockError, RedisError) as error:
            # Should another round begin: on commit, the tickets decide.
            logger.warning("the lock of the round could not be renewed: %s", error)


def count_round(outcome: str, error: str = "") -> None:
    """Count a round under ``outcome`` and, if it failed, remember why; raises ``StoreError``."""
    with open_cache() as cache:
        pipe = cache.client.pipeline()
        pipe.hincrby(cache.key("rounds"), f"count:{outcome}", 1)
        if error:
            pipe.hset(
                cache.key("rounds"), mapping={"error": error[:1000], "error_at": rfc3339(datetime.now(UTC))}
            )
        pipe.execute()


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
        self._commit = b""  # which commit the copy is of
        self._copy: Snapshot | None = None
        self._lost = False  # the cache has no full round any more, the copy has
        self._rounds: Mapping[bytes, bytes] = {}
        self._served = Snapshot()
        self._faulty = False
        self._ask_at = float("-inf")

    def read(self, now: bool = False) -> Snapshot:
        # While one thread asks, the others have what is there; if nothing is, they wait.
        due = now or time.monotonic() >= self._ask_at
        if due and self._lock.acquire(blocking=now or self._copy is None):
            try:
                if now or time.monotonic() >= self._ask_at:
                    self._refresh()
            finally:
                self._lock.release()
        return self._served

    def _refresh(self) -> None:
        pause = _RETRY_INTERVAL
        try:
            self._ask()
            pause = conf.READ_INTERVAL
        except StoreError as error:
            self._serve_copy(f"The cache cannot be read ({error}); this is the last that was read.")
        except Exception as error:
            if not self._faulty:
                logger.exception("reading the snapshot failed")
            self._serve_copy(f"The snapshot cannot be read ({error}); this is the last that was read.")
        self._ask_at = time.monotonic() + pause

    def _ask(self) -> None:
        with open_cache() as cache:
            if cache.source != self._source:
                self._clear()  # what another cache said is not true of this one
                self._source = cache.source
            pipe = cache.client.pipeline(transaction=False)
            pipe.getrange(cache.key("snapshot"), 0, HEAD_BYTES)
            pipe.hgetall(cache.key("rounds"))
            start, rounds = pipe.execute()
            head = HEAD.match(start)
            new = head is not None and head[2] != self._commit
            value = cache.client.get(cache.key("snapshot")) if new else None
        if start and not head:
            raise ValueError("it is of another format")
        if value is not None:
            snapshot, self._commit = decode(value)
            if self._copy and self._copy.checked_at and not snapshot.checked_at:
                # A check of a few came before the first round of a cache that was emptied.
                known = FrozenMapping({**self._copy.statuses, **snapshot.statuses})
                self._copy = replace(self._copy, statuses=known, number=snapshot.number)
                self._lost = True
            else:
                self._copy, self._lost = snapshot, False
        elif not head and self._copy is not None:
            self._lost = True
        changed = value is not None or rounds != self._rounds
        self._rounds = rounds
        if self._lost:
            self._serve_copy(_LOST)
        elif self._faulty or changed:
            if self._faulty:
                logger.info("the snapshot can be read again")
            self._faulty = False
            self._served = self._with_rounds("")

    def _serve_copy(self, fault: str) -> None:
        if not self._faulty:
            logger.warning("snapshot stale: %s", fault)
        self._faulty = True
        self._served = self._with_rounds(fault)

    def _with_rounds(self, fault: str) -> Snapshot:
        return replace(self._copy or Snapshot(), fault=fault, **_outcomes(self._rounds))


_reader = _Reader()

# A thread of the parent may hold the lock, and in the child nobody would ever release it.
os.register_at_fork(after_in_child=forget)


def _outcomes(data: Mapping[bytes, bytes]) -> dict[str, Any]:
    counts = {
        key.removeprefix(b"count:").decode(): int(value)
        for key, value in data.items()
        if key.startswith(b"count:")
    }
    return {
        "outcomes": FrozenMapping(counts),
        "error": data.get(b"error", b"").decode(),
        "error_at": moment(data[b"error_at"].decode()) if b"error_at" in data else None,
    }
