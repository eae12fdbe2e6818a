"""The checks that people have requested on a page, and what tells how far each of them is.

All of it is in the Redis cache, and its failures raise ``StoreError``.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from proxyhealth.exceptions import StoreError
from proxyhealth.storage.client import open_cache, run_script
from proxyhealth.texts import clean

_TTL = 600  # seconds for which a request and a failure can be read

_MAX_FAILURES = 20
_MAX_IDS = 500  # of a failure; one of more proxies is taken for a failure of all
_MAX_ERROR = 1_000  # characters

# Returns what later tells of a failure: the number of rounds that have failed so far.
_SAVE = """
local request, last_token, stats = unpack(KEYS)
local ids, ttl = unpack(ARGV)
local failed = 0
for _, outcome in ipairs({'failure', 'offline', 'incomplete'}) do
  failed = failed + (tonumber(redis.call('HGET', stats, 'count:' .. outcome) or '') or 0)
end
redis.call('SET', request, take_token(last_token) .. ' ' .. failed .. ' ' .. ids, 'EX', ttl)
"""

_ADD_FAILURE = f"""
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], -{_MAX_FAILURES}, -1)
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""


class Failure(NamedTuple):
    """The failure of a check: its token, the ids of its proxies, and its error. No ids mean all proxies."""

    token: int
    ids: frozenset[str]
    error: str

    def concerns(self, ids: Collection[str]) -> bool:
        """Return True if it was a check of one of these proxies."""
        return not self.ids or not self.ids.isdisjoint(ids)


@dataclass(frozen=True)
class Request:
    """A request of some proxies, or of all without ``ids``, beside what the cache holds now.

    Every check or round with a higher token than ``token`` began after it. ``now`` and ``last_token`` are
    microseconds of the clock of Redis. ``holder`` is the token of the running round, or 0. ``full`` is that
    of the last complete round, and ``closed`` that of the last one which ended.
    """

    token: int
    ids: Sequence[UUID] | None
    now: int
    last_token: int
    holder: int
    full: int
    closed: int
    error: str  # of the last round that had one
    has_failed_round: bool  # since the request
    pending: frozenset[str]
    failures: Sequence[Failure]

    @property
    def seconds(self) -> float:
        """The seconds since the request."""
        return max(0.0, (self.now - self.token) / 1e6)


def save_request(ids: Sequence[UUID] | None) -> UUID:
    """Store a request of these proxies, or of all, and return its id. Do this before the task is sent."""
    id = uuid4()
    text = "" if ids is None else " ".join(map(str, ids))
    run_script(_SAVE, [_key(id), "token", "round-stats"], text if ids is None else f"= {text}", _TTL)
    return id


def load_request(id: UUID) -> Request | None:
    """Return a request, or None if it is too old. Raise ``StoreError`` also for damaged values."""
    with open_cache() as cache:
        pipe = cache.client.pipeline(transaction=True)
        pipe.get(cache.key(_key(id)))
        pipe.time()
        pipe.get(cache.key("token"))
        pipe.get(cache.key("lease"))
        pipe.hgetall(cache.key("round-stats"))
        pipe.smembers(cache.key("pending"))
        pipe.lrange(cache.key("check-failures"), 0, -1)
        value, time, last_token, holder, stats, pending, failures = pipe.execute()
    if value is None:
        return None
    try:
        return _parse(value, time, last_token, holder, stats, pending, failures)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(f"the request is damaged: {clean(str(error), 200)}") from error


def _parse(
    value: bytes,
    time: Sequence[int],
    last_token: bytes | None,
    holder: bytes | None,
    stats: Mapping[bytes, bytes],
    pending: Collection[bytes],
    failures: Iterable[bytes],
) -> Request:
    token, failed, *words = value.decode().split()
    outcomes = (b"failure", b"offline", b"incomplete")
    failed_now = sum(int(stats.get(b"count:" + outcome, 0)) for outcome in outcomes)
    return Request(
        token=int(token),
        ids=list(map(UUID, words[1:])) if words else None,
        now=time[0] * 1_000_000 + time[1],
        last_token=int(last_token or 0),
        holder=int(holder or 0),
        full=int(stats.get(b"full", 0)),
        closed=int(stats.get(b"closed", 0)),
        error=stats.get(b"error", b"").decode(errors="replace"),
        has_failed_round=failed_now > int(failed),
        pending=frozenset(id.decode(errors="replace") for id in pending),
        failures=[_failure(json.loads(each)) for each in failures],
    )


def _failure(entry: Sequence[Any]) -> Failure:
    token, ids, error = entry
    return Failure(int(token), frozenset(map(str, ids)), str(error))


def add_failure(token: int, ids: Collection[UUID], error: str) -> None:
    """Store why the check with this token has failed."""
    texts = sorted(map(str, ids)) if len(ids) <= _MAX_IDS else []
    entry = json.dumps([token, texts, error[:_MAX_ERROR]])
    run_script(_ADD_FAILURE, ["check-failures"], entry, _TTL)


def _key(id: UUID) -> str:
    return f"request:{id.hex}"
