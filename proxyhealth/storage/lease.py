"""Fencing tokens, and the lease that lets one round run at a time.

Both are in the Redis cache, and its failures raise ``StoreError``. Each decision is one script there and uses
the cache's clock, because the clocks of workers differ and may be set back.
"""

import enum
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from uuid import uuid4

from proxyhealth.conf import conf
from proxyhealth.exceptions import ForeignSnapshot, StoreError
from proxyhealth.storage.client import run_script
from proxyhealth.storage.deployment import foreign_message, read_identity
from proxyhealth.storage.repair import repair

# Seconds for which a dead round can block others. A live one renews its lease.
MAX_LEASE = 10.0

_POLL = 0.1  # seconds

# Leases are in milliseconds, all other times in microseconds. An empty string means None.
_BEGIN = """
local last_token, lease, stats, tick, rerun, plan = unpack(KEYS)
local ttl, max_ttl, min_gap, requested, rerun_if_busy, max_age, deployment, stale_after, id = unpack(ARGV)
local holder = redis.call('GET', lease)
-- A client that lost the reply runs the script again.
if holder and redis.call('HGET', stats, 'begun') == id then
  return {'begun', holder, redis.call('EXISTS', plan)}
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full = tonumber(redis.call('HGET', stats, 'full') or '0')
local owner = redis.call('HGET', stats, 'deployment')
-- The rounds of another deployment go on while its snapshot is fresh. After that, this one takes over.
local is_foreign = owner and deployment ~= '' and owner ~= deployment
if is_foreign and now >= full and now - full < tonumber(stale_after) then
  return {'foreign', owner, 0}
end
if requested ~= '' and full > tonumber(requested) then return {'done', '0', 0} end
if now >= full and now - full < tonumber(max_age) and redis.call('EXISTS', plan) == 0 then
  return {'done', '0', 0}
end
local left = redis.call('PTTL', lease)
-- A lease above the maximum is from before the clock was set back.
if holder and left >= 0 and left <= tonumber(max_ttl) then
  if rerun_if_busy == '1' then redis.call('SET', rerun, requested ~= '' and requested or holder) end
  return {'running', '0', 0}
end
if min_gap ~= '' then
  local last = tonumber(redis.call('GET', tick) or '0')
  if now >= last and now - last < tonumber(min_gap) then return {'early', '0', 0} end
  redis.call('SET', tick, string.format('%.0f', now))
end
local token = take_token(last_token)
redis.call('SET', lease, token, 'PX', ttl)
redis.call('HSET', stats, 'begun', id)
redis.call('DEL', rerun)
return {'begun', token, redis.call('EXISTS', plan)}
"""

_RENEW = """
local lease, stats = unpack(KEYS)
local token, ttl = unpack(ARGV)
if is_superseded(lease, stats, token) then return 0 end
permit_writes(stats)
-- Another host may give longer leases. This one must not shorten them.
if redis.call('PTTL', lease) < tonumber(ttl) then redis.call('SET', lease, token, 'PX', ttl) end
return 1
"""

_END = """
local lease, stats, rerun = unpack(KEYS)
local token = ARGV[1]
permit_writes(stats)
if not is_closed(stats, token) then redis.call('HSET', stats, 'closed', token) end
local holder = redis.call('GET', lease)
if holder and holder ~= token then return '0' end
redis.call('DEL', lease)
local requested = redis.call('GET', rerun) or '0'
if tonumber(redis.call('HGET', stats, 'full') or '0') > tonumber(requested) then return '0' end
return requested
"""


def take_token() -> int:
    """Return a new token, higher than all before. Raise ``StoreError``.

    Take it before reading the proxies. On commit, per proxy, the higher token wins.
    """
    return int(run_script("return take_token(KEYS[1])", ["token"]))


class RoundOutcome(enum.StrEnum):
    """The result of a request for a round."""

    BEGUN = "begun"
    BUSY = "running"  # another round has the lease
    EARLY = "early"  # too soon after the last tick
    DONE = "done"  # a round that fulfils the request has been committed
    SHARED = "shared"  # all workers run it
    SUCCESS = "success"


@dataclass(frozen=True)
class RoundRequest:
    """The conditions under which a round may begin.

    ``min_gap`` is for ticks: the minimum seconds since the last tick. It prevents extra rounds from a second
    scheduler or a backlog. A full round that began after ``requested_token``, or less than ``max_age``
    seconds ago, fulfils the request. With ``rerun_if_busy``, a running round is followed by another one.
    """

    min_gap: float | None = None
    requested_token: int | None = None
    rerun_if_busy: bool = False
    max_age: float = 0


ANY_ROUND = RoundRequest()


class RoundStart(NamedTuple):
    """The answer to a request for a round."""

    outcome: RoundOutcome
    token: int  # 0 unless the round has begun
    left_over: bool  # True if an earlier round left a plan


def lease_seconds() -> float:
    """Return the duration of a lease in seconds, so short that a dead round costs one tick, not two."""
    return min(MAX_LEASE, max(1.0, conf.INTERVAL / 2))


def begin_round(request: RoundRequest = ANY_ROUND, *, wait: float = 0) -> RoundStart:
    """Take the lease if the request allows it. Wait up to ``wait`` seconds for a running round to end.

    First repair our keys in the cache, so that the round can run whatever they hold. Raise
    ``ForeignSnapshot`` if another deployment runs its rounds there.
    """
    repair()
    end = time.monotonic() + wait
    keys = ["token", "lease", "round-stats", "tick", "rerun", "plan"]
    args = [
        _ms(lease_seconds()),
        _ms(MAX_LEASE),
        "" if request.min_gap is None else int(request.min_gap * 1_000_000),
        "" if request.requested_token is None else request.requested_token,
        int(request.rerun_if_busy),
        int(request.max_age * 1_000_000),
        read_identity(),
        int(conf.STALE_AFTER * 1_000_000),
        uuid4().hex,
    ]
    while True:
        outcome, token, left_over = run_script(_BEGIN, keys, *args)
        if outcome == b"foreign":
            raise ForeignSnapshot(foreign_message(token.decode()))
        start = RoundStart(RoundOutcome(outcome.decode()), int(token), bool(left_over))
        if start.outcome is not RoundOutcome.BUSY or time.monotonic() >= end:
            return start
        time.sleep(_POLL)


class Lease:
    """The right to continue a round. ``lost`` is set when another round takes it or this one is closed."""

    def __init__(self, seconds: float) -> None:
        self.lost = threading.Event()
        self.extend(seconds)

    def extend(self, seconds: float) -> None:
        """Allow renewals for ``seconds`` from now on."""
        self.end = time.monotonic() + seconds

    def __bool__(self) -> bool:
        return not self.lost.is_set()


@contextmanager
def renewing_lease(token: int, seconds: float) -> Iterator[Lease]:
    """Renew the lease of a round while the block runs, for ``seconds`` at most.

    A block that hangs must not block other rounds forever. A lease that expired, or that the cache lost, is
    taken again if it is free. Raise ``StoreError`` if the cache fails at the start.
    """
    lease = Lease(seconds)
    if not _renew(token):
        lease.lost.set()
        yield lease
        return
    done = threading.Event()

    def renew() -> None:
        while not done.wait(lease_seconds() / 4) and time.monotonic() < lease.end:
            try:
                if not _renew(token):
                    lease.lost.set()
                    return
            except StoreError:
                continue  # the cache may respond again before the lease expires

    thread = threading.Thread(target=renew, name="round lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        done.set()
        thread.join()


def _renew(token: int) -> bool:
    return bool(run_script(_RENEW, ["lease", "round-stats"], token, _ms(lease_seconds())))


def end_round(token: int) -> int:
    """Close the round, release its lease, and return the token of the last request for another, or 0."""
    return int(run_script(_END, ["lease", "round-stats", "rerun"], token))


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
