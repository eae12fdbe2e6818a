"""The copy of the snapshot that this process has read from the Redis cache."""

import logging
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum, auto
from typing import Any, NamedTuple

from redis.exceptions import OutOfMemoryError, RedisError

from proxyhealth import isolation
from proxyhealth.conf import conf
from proxyhealth.exceptions import ForeignSnapshot, StoreError
from proxyhealth.shared_copy import SharedCopy
from proxyhealth.snapshot import Snapshot
from proxyhealth.storage import fallback
from proxyhealth.storage.client import Cache, open_cache
from proxyhealth.storage.counters import MAX_ERROR, TaskRuns, find_refusal
from proxyhealth.storage.deployment import foreign_message, is_foreign
from proxyhealth.storage.document import HEAD, HEAD_BYTES, PreviousLines, decode
from proxyhealth.storage.lease import MAX_LEASE
from proxyhealth.texts import clean, without_passwords
from proxyhealth.utils import FrozenMapping, PerProcess, parse_rfc3339

logger = logging.getLogger(__name__)

_LAST = "This is the last snapshot that was read."
_CONFIRMED = "These are the last confirmed statuses, from the database."
_NONE = "This process has not read a snapshot yet, so no status is known."

# In seconds:
_GRACE = 0.5  # minimum time for which readers get a due copy during a read: most reads take less
_TIMEOUT = 1.0  # wait for another thread's read, before an overdue copy is returned
_SCRAPE_TIMEOUT = 5.0  # the same for scrapes: a cache that hangs must not block all threads of a web server
_RETRY_INTERVAL = 2.0  # pause in reads after the cache failed
_TEST_INTERVAL = 2.0  # pause between tests of the cache while a round is overdue


class CacheContents(NamedTuple):
    """The contents of the cache at one moment."""

    document: bytes = b""  # only its head, if the reader has the rest; empty if there is none
    round_stats: Mapping[bytes, bytes] = FrozenMapping()
    task_stats: Mapping[bytes, bytes] = FrozenMapping()
    lease: int = 0  # milliseconds until it expires; not above 0 without a lease
    time: float = 0.0  # seconds of the cache's clock (Unix)
    read_at: float = 0.0  # seconds of this machine's monotonic clock

    @property
    def head(self) -> bytes:
        """The beginning of the document, which identifies its commit."""
        return self.document[: HEAD_BYTES + 1]

    @property
    def round_in_progress(self) -> bool:
        # A lease above the maximum is from before the clock was set back.
        return 0 < self.lease <= MAX_LEASE * 1000

    @property
    def tasks(self) -> Mapping[str, TaskRuns]:
        """The runs of each task, by its name."""
        tasks: dict[str, TaskRuns] = {}
        for key, count in _counts(self.task_stats).items():
            name, _, part = key.partition(":")
            if part in TaskRuns._fields:
                tasks[name] = tasks.get(name, TaskRuns())._replace(**{part: count})
        return FrozenMapping(tasks)

    @property
    def round_fields(self) -> dict[str, Any]:
        """The fields of a snapshot that are not in the document."""
        counts = _counts(self.round_stats).items()
        return {
            "outcomes": FrozenMapping(
                {key.removeprefix("count:"): count for key, count in counts if key.startswith("count:")}
            ),
            "error": clean(self.round_stats.get(b"error", b"").decode(errors="replace"), MAX_ERROR),
            "offline": clean(self.round_stats.get(b"offline", b"").decode(errors="replace"), MAX_ERROR),
            "error_at": _parse_time(self.round_stats.get(b"error_at")),
            "change": self.round_stats.get(b"change", b"").decode(errors="replace"),
        }


def _counts(fields: Mapping[bytes, bytes]) -> dict[str, int]:
    """Return the fields that are 64-bit integers. A newer version may write others."""
    counts = {}
    for key, value in fields.items():
        with suppress(ValueError):
            count = int(value)
            if abs(count) < 1 << 63:
                counts[key.decode()] = count
    return counts


def _parse_time(value: bytes | None) -> datetime | None:
    with suppress(ValueError):
        return parse_rfc3339(value.decode()) if value else None
    return None


def read_contents(cache: Cache, last_head: bytes) -> CacheContents:
    """Read the cache, but only the head of the document if it is ``last_head``. Raise ``RedisError``."""
    contents = _read_contents(cache, whole=False)
    return contents if contents.head in (b"", last_head) else _read_contents(cache, whole=True)


def _read_contents(cache: Cache, whole: bool) -> CacheContents:
    try:
        # One transaction, so that the statuses of one commit do not meet the counts of another.
        *replies, task_stats = _read_keys(cache, whole, transaction=True)
    except OutOfMemoryError:
        # A full Redis queues no command of a transaction. It accepts no commit either.
        *replies, task_stats = _read_keys(cache, whole, transaction=False)
    for reply in replies:
        if isinstance(reply, RedisError):
            raise reply
    document, round_stats, lease, (seconds, microseconds) = replies
    if isinstance(task_stats, RedisError):
        task_stats = {}  # an invalid key of the counters must not hide the snapshot
    round_stats.pop(b"begun", None)  # the beginning of a round makes no new snapshot
    now = seconds + microseconds / 1e6
    return CacheContents(document or b"", round_stats, task_stats, lease, now, time.monotonic())


def _read_keys(cache: Cache, whole: bool, transaction: bool) -> list[Any]:
    """Return the replies of Redis. Each is a value or an error."""
    pipe = cache.client.pipeline(transaction=transaction)
    if whole:
        pipe.get(cache.key("snapshot"))
    else:
        pipe.getrange(cache.key("snapshot"), 0, HEAD_BYTES)
    pipe.hgetall(cache.key("round-stats"))
    pipe.pttl(cache.key("lease"))
    pipe.time()
    pipe.hgetall(cache.key("tasks"))
    replies: list[Any] = pipe.execute(raise_on_error=False)
    return replies


class _Condition(Enum):
    FRESH = auto()  # the copy is what the cache holds
    LOST = auto()  # the cache was emptied, and readers get statuses that it lost
    UNREADABLE = auto()  # the last read failed


@dataclass(frozen=True)
class _State:
    """The data that this process has read from the cache. Each read makes a new state."""

    snapshot: Snapshot = field(default_factory=Snapshot)  # for readers: ``copy``, the rounds, and the fault
    condition: _Condition = _Condition.FRESH
    cached: Snapshot | None = None  # what the cache holds
    copy: Snapshot | None = None  # ``cached``, plus the statuses that the cache has lost
    confirmed: Snapshot | None = None  # those of the copy that the database gave, in place of the cache
    token: int = 0  # of the copy's last full round
    contents: CacheContents = field(default_factory=CacheContents)  # without the document, which is large
    lines: PreviousLines = field(default_factory=PreviousLines)  # of the document
    source: str = ""  # the cache that was read
    deployment: str = ""  # the identity in the document, or empty
    refusal: str = ""  # the reason why the cache refuses to store rounds
    tested_at: float = -math.inf  # the time of the last test of the cache (monotonic)


def _after_read(state: _State, contents: CacheContents) -> _State:
    """Return the state after a read. Raise ``ValueError`` for a document that cannot be decoded."""
    if contents.head not in (b"", state.contents.head):
        after = _after_new_document(state, contents)
    elif contents.head and state.cached and state.cached.checked_at:
        # The monotonic clock stands still while a machine sleeps: compare with the cache's clock again.
        dated = _dated(state, state.cached, state.token, contents)
        after = replace(state, cached=dated, copy=dated)
    else:
        after = _completed(state, state.cached if contents.head else None)
    after = _with_refusal(replace(after, contents=contents._replace(document=contents.head)))
    if after.copy is after.cached:
        return _with_snapshot(state, after, _Condition.FRESH, "")
    fault = f"The cache has lost the snapshot. {_last(after)}"
    return _with_snapshot(state, after, _Condition.LOST, fault)


def _after_new_document(state: _State, contents: CacheContents) -> _State:
    if not HEAD.match(contents.head):
        raise ValueError("it is of another format")
    cached, token, lines, deployment = decode(contents.document, state.lines)
    if is_foreign(deployment):
        raise ForeignSnapshot(foreign_message(deployment))
    state = replace(state, deployment=deployment, lines=lines)
    if not cached.checked_at:
        return _completed(state, cached)
    if state.confirmed:
        fallback.forget()  # to free its memory
    cached = _dated(state, cached, token, contents)
    return replace(state, cached=cached, copy=cached, confirmed=None, token=token)


def _completed(state: _State, cached: Snapshot | None) -> _State:
    """Return the state with ``cached``, and with a copy that also has what the cache lacks.

    The cache was emptied, or cannot be read. This process may have a copy of a full round. Otherwise, the
    database has the last confirmed statuses, if it knows of a full round.
    """
    copy, confirmed = state.copy, state.confirmed
    if confirmed or not (copy and copy.checked_at):
        confirmed = fallback.read() or confirmed
        copy = confirmed or copy
    if confirmed is state.confirmed and cached is state.cached:
        return state
    if cached and not (copy and copy.checked_at):
        copy = cached
    elif cached and copy:
        statuses = FrozenMapping({**copy.statuses, **cached.statuses})
        tokens = list({**copy.tokens, **cached.tokens}.values())
        copy = replace(copy, statuses=statuses, result_tokens=tokens, number=cached.number)
        copy = replace(copy, committed_at=cached.committed_at)
    return replace(state, cached=cached, copy=copy, confirmed=confirmed)


def _dated(state: _State, snapshot: Snapshot, token: int, contents: CacheContents) -> Snapshot:
    """Return ``snapshot`` with ``fresh_until``, the time at which it turns stale by the monotonic clock.

    Its age is the cache's time less its token, which is a time of the same clock.
    """
    if not snapshot.stale_at or not snapshot.checked_at:
        return snapshot
    age = max(0.0, contents.time - token / 1e6)
    fresh_until = contents.read_at + (snapshot.stale_at - snapshot.checked_at).total_seconds() - age
    before = state.copy.fresh_until if state.copy and token == state.token else None
    # Never later than before, when a clock is set back. Up to 0.1 s earlier is the latency of the cache.
    if before is not None and fresh_until > before - 0.1:
        fresh_until = before
    return snapshot if fresh_until == snapshot.fresh_until else replace(snapshot, fresh_until=fresh_until)


def _with_snapshot(before: _State, after: _State, condition: _Condition, fault: str) -> _State:
    """Return ``after`` with the snapshot for readers, which is the same object if nothing changed."""
    unchanged = after.copy is before.copy and after.contents.round_stats == before.contents.round_stats
    if not unchanged or (fault, after.refusal) != (before.snapshot.fault, before.snapshot.refusal):
        fields = after.contents.round_fields
        snapshot = replace(after.copy or Snapshot(), fault=fault, refusal=after.refusal, **fields)
        after = replace(after, snapshot=snapshot)
    return replace(after, condition=condition)


def _with_refusal(state: _State) -> _State:
    """Test the cache while a round is overdue, and return the state with the reason of a refusal.

    If Redis is full or refuses scripts, it may also refuse to count the failed rounds, or to queue them.
    """
    if not _is_overdue(state.copy):
        return replace(state, refusal="") if state.refusal else state
    if time.monotonic() < state.tested_at + _TEST_INTERVAL:
        return state
    refusal = clean(find_refusal(), MAX_ERROR)
    if refusal and not state.refusal:
        logger.warning("rounds cannot be stored: %s", refusal)
    return replace(state, refusal=refusal, tested_at=time.monotonic())


def _is_overdue(snapshot: Snapshot | None) -> bool:
    """Return True if no full round began within the last one and a half intervals."""
    if snapshot is None or snapshot.stale or not (snapshot.stale_at and snapshot.checked_at):
        return True
    if snapshot.fresh_until is None:
        return False
    begin = snapshot.fresh_until - (snapshot.stale_at - snapshot.checked_at).total_seconds()
    return time.monotonic() > begin + 1.5 * conf.INTERVAL


def _after_failure(state: _State, fault: str) -> _State:
    after = _completed(state, state.cached)
    return _unreadable(state, after, f"{fault} {_last(after)}")


def _unreadable(before: _State, after: _State, fault: str) -> _State:
    fault = clean(fault, MAX_ERROR)  # errors repeat texts of Redis
    return _with_snapshot(before, replace(after, refusal=""), _Condition.UNREADABLE, fault)


def _last(state: _State) -> str:
    return _CONFIRMED if state.confirmed else _LAST if state.copy else _NONE


def _mark_late(state: _State) -> _State:
    return _unreadable(state, state, state.snapshot.fault or f"The cache does not respond. {_last(state)}")


def _refresh(previous: _State | None) -> tuple[_State, float]:
    """Read the cache, and return the next state and the seconds until the next read.

    Raise only ``ImproperlyConfigured``, for an invalid setting.
    """
    if substitute := isolation.current():
        # Without a ``copy``, and due at once, so that all threads see what a test changes.
        return _State(snapshot=substitute.snapshot), 0.0
    state = previous or _State()
    try:
        with open_cache() as cache:
            if cache.source != state.source:
                state = _State(source=cache.source)  # the state belongs to another cache
            if is_foreign(state.deployment):
                state = _State(source=cache.source)  # read before our own identity was known
            contents = read_contents(cache, state.contents.head)
        after = _after_read(state, contents)
    except ForeignSnapshot as error:
        after = _after_failure(state, f"The snapshot in the cache cannot be used: {error}")
    except StoreError as error:
        after = _after_failure(state, f"The cache cannot be read ({str(error).rstrip('.')}).")
    except Exception as error:
        if state.condition is _Condition.FRESH:
            logger.exception("reading the snapshot failed")
        after = _after_failure(state, f"The snapshot cannot be read ({without_passwords(error)}).")
    was_fresh, is_fresh = (each.condition is _Condition.FRESH for each in (state, after))
    if was_fresh and not is_fresh:
        logger.warning("snapshot stale: %s", after.snapshot.fault)
    elif is_fresh and not was_fresh:
        logger.info("the snapshot can be read again")
    return after, _RETRY_INTERVAL if after.condition is _Condition.UNREADABLE else conf.READ_INTERVAL


_reader = PerProcess(lambda: SharedCopy(_State(), _mark_late))


def forget() -> None:
    """Drop this process's copy, for tests."""
    _reader.reset()
    fallback.forget()


def read() -> Snapshot:
    """Return this process's snapshot. Read the cache again ``READ_INTERVAL`` seconds after the last read.

    While one thread reads, the others get the previous copy. If the cache cannot be read, it is the last copy
    of this process, the last confirmed statuses from the database, or an empty one, each with a ``fault``.
    Raise only ``ImproperlyConfigured``.
    """
    reader = _reader.value
    if time.monotonic() < reader.due_at and (state := reader.value):  # reader.fresh(), inlined for speed
        return state.snapshot
    if reader.value and reader.value.copy:
        return reader.get(_refresh, grace=max(conf.READ_INTERVAL, _GRACE), timeout=_TIMEOUT).snapshot
    return reader.get(_refresh).snapshot  # without a copy, wait for the cache


async def aread() -> Snapshot:
    """Return the snapshot as :func:`read` does. A thread reads the cache, so that the event loop goes on."""
    reader = _reader.value
    if time.monotonic() < reader.due_at and (state := reader.value):  # as in read()
        return state.snapshot
    if reader.value and reader.value.copy:
        state = await reader.aget(_refresh, grace=max(conf.READ_INTERVAL, _GRACE), timeout=_TIMEOUT)
        return state.snapshot
    return (await reader.aget(_refresh)).snapshot


def read_anew() -> Snapshot:
    """Read the cache now, and return the snapshot as :func:`read` does."""
    return _reader.value.get(_refresh, is_current=lambda state: False).snapshot


def has_nothing_to_serve() -> bool:
    """Return True if this process has no statuses to serve, and no read has succeeded. Read nothing."""
    state = _reader.value.value or _State()
    has_read = state.source and state.condition is not _Condition.UNREADABLE
    return state.copy is None and not has_read


def is_unreadable() -> bool:
    """Return True if the last read of the cache failed, or does not end. Read nothing."""
    copy = _reader.value
    return copy.is_late or bool(copy.value and copy.value.condition is _Condition.UNREADABLE)


class Activity(NamedTuple):
    """The contents of the cache at one moment; ``tasks`` are the runs of the Celery tasks, by name."""

    snapshot: Snapshot
    round_in_progress: bool
    tasks: Mapping[str, TaskRuns]


def read_activity() -> Activity:
    """Read the cache now, and return only what it holds: the same in all processes.

    If the cache cannot be read, return the last contents, and a snapshot with a ``fault``. Raise only
    ``ImproperlyConfigured``.
    """
    # Read even if the copy is fresh: if two processes are scraped in turn, the older copy would make counters
    # decrease. But do not read a cache that has just failed.
    state = _reader.value.get(
        _refresh, is_current=lambda state: state.condition is _Condition.UNREADABLE, timeout=_SCRAPE_TIMEOUT
    )
    snapshot, contents = state.snapshot, state.contents
    if state.condition is _Condition.LOST:
        snapshot = replace(state.cached or Snapshot(), refusal=state.refusal, **contents.round_fields)
    return Activity(snapshot, contents.round_in_progress, contents.tasks)
