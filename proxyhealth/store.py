"""The snapshot in the Redis cache: how it is read, and how statuses are committed to it."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

from redis.exceptions import LockError, RedisError, WatchError

from proxyhealth.cache import StoreError, open_cache
from proxyhealth.conf import conf
from proxyhealth.report import ProxyStatus, RoundHistogram, Snapshot, rfc3339

logger = logging.getLogger(__name__)

FORMAT = 1
# A document begins with what names its commit, so that a few bytes tell whether it is a new one.
_HEAD = re.compile(rb'\{"format": (\d+), "commit": "([0-9a-f]{32})"')
_HEAD_BYTES = 80

# How long a removal is remembered, in tickets (microseconds): longer than any round can take.
_REMOVED_FOR = 3_600 * 1_000_000

_COMMIT_ATTEMPTS = 100

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


class Change(NamedTuple):
    """A proxy whose status is another one now; ``before`` is empty for a new proxy."""

    proxy: str
    name: str
    before: str
    after: ProxyStatus


@dataclass(frozen=True)
class Round:
    """A full round, for the snapshot to carry: when it began reading, and its seconds."""

    checked_at: datetime
    duration: float


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
) -> list[Change]:
    """Merge ``statuses`` into the snapshot in one step, and take ``removed`` out of it.

    What was checked under a higher ticket stays as it is. A full round also takes out every
    proxy that it did not find. Raises ``StoreError``; then nothing is changed.
    """
    with open_cache() as cache:
        key = cache.key("snapshot")
        for _ in range(_COMMIT_ATTEMPTS):
            with cache.client.pipeline() as pipe:
                pipe.watch(key)
                document = _load_or_begin_anew(pipe.get(key))
                changes = _merge(document, statuses, ticket, removed, full_round)
                pipe.multi()
                pipe.set(key, _dump(document))
                try:
                    pipe.execute()
                except WatchError:
                    continue  # somebody else committed in between: merge into theirs
            return changes
    raise StoreError(f"the snapshot changed under each of {_COMMIT_ATTEMPTS} attempts to commit to it")


def _empty_document() -> dict[str, Any]:
    return {
        "format": FORMAT,
        "commit": "",
        "number": 0,
        "ticket": 0,  # of the last full round
        "checked_at": None,
        "duration": None,
        "stale_at": None,
        "rounds": {"counts": RoundHistogram().counts, "sum": 0.0},
        "removed": {},
        "statuses": {},
    }


def _load(value: bytes) -> dict[str, Any]:
    """Raises ``ValueError`` for what is no document of ours."""
    head = _HEAD.match(value)
    if head and int(head[1]) == FORMAT:
        document: dict[str, Any] = json.loads(value)
        if _empty_document().keys() <= document.keys():
            return document
    raise ValueError("it is of another format")


def _load_or_begin_anew(value: bytes | None) -> dict[str, Any]:
    if value is None:
        return _empty_document()
    try:
        return _load(value)
    except ValueError as error:
        # Left as it is, it would make every round fail.
        logger.error("the snapshot in the cache is replaced, because it cannot be read: %s", error)
        return _empty_document()


def _dump(document: Mapping[str, Any]) -> bytes:
    # A lone surrogate in one row is no reason to lose all of them.
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")


def _merge(
    document: dict[str, Any],
    statuses: Sequence[ProxyStatus],
    ticket: int,
    removed: Iterable[UUID],
    full_round: Round | None,
) -> list[Change]:
    """Bring ``document`` up to date, in place."""
    old: dict[str, Any] = document["statuses"]
    gone: dict[str, int] = document["removed"]
    new = dict(old)
    changes = []

    def newest(id: str) -> bool:
        known = old[id]["ticket"] if id in old else 0
        return ticket > max(known, gone.get(id, 0))

    for status in statuses:
        id = str(status.proxy.id)
        if newest(id):
            new[id] = {**status.to_json(), "ticket": ticket}
            gone.pop(id, None)
            before = old[id]["status"] if id in old else ""
            if before != status.status:
                changes.append(Change(id, status.proxy.name, before, status))
    for id in map(str, removed):
        if newest(id):
            new.pop(id, None)
            # A slower round that still saw the proxy must not bring it back.
            gone[id] = ticket
    if full_round:
        found = {str(status.proxy.id) for status in statuses}
        for id in [id for id, s in new.items() if id not in found and s["ticket"] < ticket]:
            del new[id]
            gone[id] = ticket
        rounds = RoundHistogram(tuple(document["rounds"]["counts"]), document["rounds"]["sum"])
        rounds = rounds.observe(full_round.duration)
        document["rounds"] = {"counts": rounds.counts, "sum": rounds.sum}
        if ticket > document["ticket"]:
            stale_at = full_round.checked_at + timedelta(seconds=conf.STALE_AFTER)
            document.update(
                ticket=ticket,
                checked_at=rfc3339(full_round.checked_at),
                duration=full_round.duration,
                stale_at=rfc3339(stale_at),
            )
    document["statuses"] = dict(sorted(new.items(), key=lambda item: item[1]["proxy"]["name"].lower()))
    document["removed"] = {id: t for id, t in gone.items() if t > ticket - _REMOVED_FOR}
    document["commit"] = uuid.uuid4().hex
    document["number"] += 1
    return changes


# Rounds: one at a time, counted


@contextmanager
def round_lock(seconds: float, wait: float = 0) -> Iterator[RoundLock | None]:
    """Holds off other rounds for ``seconds`` at most; yields None if one is running after ``wait``.

    Raises ``StoreError``.
    """
    with open_cache() as cache:
        lock = cache.client.lock(cache.key("round"), timeout=seconds, thread_local=False)
        acquired = lock.acquire(blocking=wait > 0, blocking_timeout=wait or None)
    if not acquired:
        yield None
        return
    try:
        yield RoundLock(lock)
    finally:
        try:
            lock.release()
        except (LockError, RedisError) as error:
            # It frees itself when its time is over.
            logger.warning("the lock of the round could not be released: %s", error)


class RoundLock:
    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def hold_for(self, seconds: float) -> None:
        """Hold for ``seconds`` from now; raises ``StoreError`` if the lock was lost."""
        try:
            self._lock.extend(seconds, replace_ttl=True)
        except (LockError, RedisError) as error:
            raise StoreError(f"the lock of the round was lost: {error}") from error


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


def forget() -> None:
    """Drop this process's copy of the snapshot, so that the next read asks the cache."""
    _reader.forget()


class _Reader:
    """This process's copy of the snapshot."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        self._source = ""
        self._commit = b""  # which commit the copy is of
        self._copy: Snapshot | None = None
        self._rounds: Mapping[bytes, bytes] = {}
        self._served = Snapshot()
        self._ask_at = float("-inf")

    def read(self) -> Snapshot:
        # While one thread asks, the others have what is there; if nothing is, they wait.
        if time.monotonic() >= self._ask_at and self._lock.acquire(blocking=self._copy is None):
            try:
                if time.monotonic() >= self._ask_at:
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
            if not self._served.fault:
                logger.exception("reading the snapshot failed")
            self._serve_copy(f"The snapshot cannot be read ({error}); this is the last that was read.")
        self._ask_at = time.monotonic() + pause

    def _ask(self) -> None:
        with open_cache() as cache:
            if cache.source != self._source:
                self.forget()  # what another cache said is not true of this one
                self._source = cache.source
            pipe = cache.client.pipeline(transaction=False)
            pipe.getrange(cache.key("snapshot"), 0, _HEAD_BYTES)
            pipe.hgetall(cache.key("rounds"))
            start, rounds = pipe.execute()
            head = _HEAD.match(start)
            changed = head is not None and head[2] != self._commit
            value = cache.client.get(cache.key("snapshot")) if changed else None
        if start and not head:
            raise ValueError("it is of another format")
        if value is not None:
            self._copy, self._commit = _decode(value)
        elif not head and self._copy is not None:
            self._serve_copy("The cache has lost the snapshot; this is the last that was read.")
            return
        if self._served.fault:
            logger.info("the snapshot can be read again")
        elif value is None and rounds == self._rounds:
            return  # as it was
        self._rounds = rounds
        self._served = replace(self._copy or Snapshot(), **_outcomes(rounds))

    def _serve_copy(self, fault: str) -> None:
        if not self._served.fault:
            logger.warning("snapshot stale: %s", fault)
        if self._served.fault != fault:
            self._served = replace(self._served, fault=fault)


_reader = _Reader()


def _decode(value: bytes) -> tuple[Snapshot, bytes]:
    """The snapshot in ``value`` and the commit it is of; raises ``ValueError``."""
    document = _load(value)
    statuses = [ProxyStatus.from_json(data) for data in document["statuses"].values()]
    snapshot = Snapshot(
        statuses=MappingProxyType({status.proxy.id: status for status in statuses}),
        checked_at=_moment(document["checked_at"]),
        duration=document["duration"],
        number=document["number"],
        stale_at=_moment(document["stale_at"]),
        rounds=RoundHistogram(tuple(document["rounds"]["counts"]), document["rounds"]["sum"]),
    )
    return snapshot, document["commit"].encode()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _outcomes(data: Mapping[bytes, bytes]) -> dict[str, Any]:
    counts = {
        key.removeprefix(b"count:").decode(): int(value)
        for key, value in data.items()
        if key.startswith(b"count:")
    }
    return {
        "outcomes": MappingProxyType(counts),
        "error": data.get(b"error", b"").decode(),
        "error_at": _moment(data[b"error_at"].decode()) if b"error_at" in data else None,
    }
