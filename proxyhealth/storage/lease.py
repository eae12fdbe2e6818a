"""Who may do what, over all processes of a deployment: tokens, the lease of the round, what is asked for.

All of it is in the Redis cache, each decision is one script there, and the time is that of the cache: the
clocks of workers differ, and step back.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from proxyhealth.conf import conf
from proxyhealth.exceptions import StoreError
from proxyhealth.storage.client import run_script

# What a round that has died costs at the most. A living one renews its lease.
MAX_LEASE = 10.0


_POLL = 0.1


# A token tells which of two checks began later: the cache's own time, made to go up only.
_LUA_FUNCTIONS = """
local function take_token(key)
  local time = redis.call('TIME')
  local token = time[1] * 1000000 + time[2]
  local last = tonumber(redis.call('GET', key) or '0')
  if token <= last then token = last + 1 end
  token = string.format('%.0f', token)
  redis.call('SET', key, token)
  return token
end
"""

_TAKE_TOKEN = f"{_LUA_FUNCTIONS} return take_token(KEYS[1])"

# KEYS: token, lease, rounds, tick, wanted, plan
# ARGV: lease (ms), longest lease (ms), gap between ticks (µs, or empty), token of the request (or empty),
#       whether the round under way is to be followed by another one, age of a round that will do (µs)
_BEGIN = f"""{_LUA_FUNCTIONS}
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full = tonumber(redis.call('HGET', KEYS[3], 'full') or '0')
if ARGV[4] ~= '' and full > tonumber(ARGV[4]) then return {{'done', '0', 0}} end
if now >= full and now - full < tonumber(ARGV[6]) and redis.call('EXISTS', KEYS[6]) == 0 then
  return {{'done', '0', 0}}
end
local held = redis.call('GET', KEYS[2])
-- A lease with more life left than is ever given is from before the clock stepped back.
if held and redis.call('PTTL', KEYS[2]) > tonumber(ARGV[2]) then held = false end
if held then
  if ARGV[5] == '1' then redis.call('SET', KEYS[5], ARGV[4] ~= '' and ARGV[4] or held) end
  return {{'running', '0', 0}}
end
if ARGV[3] ~= '' then
  local last = tonumber(redis.call('GET', KEYS[4]) or '0')
  if now >= last and now - last < tonumber(ARGV[3]) then return {{'early', '0', 0}} end
  redis.call('SET', KEYS[4], string.format('%.0f', now))
end
local token = take_token(KEYS[1])
redis.call('SET', KEYS[2], token, 'PX', ARGV[1])
redis.call('DEL', KEYS[5])
return {{'begun', token, redis.call('EXISTS', KEYS[6])}}
"""

# KEYS: lease, rounds. ARGV: token, lease (ms)
_RENEW = """
local held = redis.call('GET', KEYS[1])
if held == ARGV[1] then
  -- Another host may give longer leases; this one is not to be shortened.
  if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
  return 1
end
if held or tonumber(redis.call('HGET', KEYS[2], 'closed') or '0') >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS: lease, rounds, wanted. ARGV: token
_END = """
if tonumber(redis.call('HGET', KEYS[2], 'closed') or '0') < tonumber(ARGV[1]) then
  redis.call('HSET', KEYS[2], 'closed', ARGV[1])
end
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return '0' end
redis.call('DEL', KEYS[1])
local wanted = redis.call('GET', KEYS[3]) or '0'
if tonumber(redis.call('HGET', KEYS[2], 'full') or '0') > tonumber(wanted) then return '0' end
return wanted
"""


def take_token() -> int:
    """To be taken before the proxies are read: on commit, per proxy, the higher token wins.

    Raises ``StoreError``, as all here does.
    """
    return int(run_script(_TAKE_TOKEN, ["token"]))


# Rounds: one at a time, counted


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

    ``min_gap`` is that of a tick: seconds since the last one, so that two schedulers, or the backlog of one,
    cause no more rounds than one does. A full round that began after ``requested_token``, or less than
    ``max_age`` seconds ago, fulfils the request. With ``rerun_if_busy``, a running round is followed by
    another one.
    """

    min_gap: float | None = None
    requested_token: int | None = None
    rerun_if_busy: bool = False
    max_age: float = 0


ANY_ROUND = RoundRequest()


class RoundStart(NamedTuple):
    """The answer to a request. ``token`` is 0 unless a round has begun, ``left_over`` if an earlier round
    left a plan."""

    outcome: RoundOutcome
    token: int
    left_over: bool


def lease_seconds() -> float:
    """Return for how long a dead round keeps others away: one tick is lost to it, not two."""
    return min(MAX_LEASE, max(1.0, conf.INTERVAL / 2))


def begin_round(request: RoundRequest = ANY_ROUND, *, wait: float = 0) -> RoundStart:
    """Take the lease of the round, if the request allows it. Wait ``wait`` seconds for another round."""
    end = time.monotonic() + wait
    keys = ["token", "lease", "round-stats", "tick", "rerun", "plan"]
    args = [
        _ms(lease_seconds()),
        _ms(MAX_LEASE),
        "" if request.min_gap is None else int(request.min_gap * 1_000_000),
        "" if request.requested_token is None else request.requested_token,
        int(request.rerun_if_busy),
        int(request.max_age * 1_000_000),
    ]
    while True:
        outcome, token, left_over = run_script(_BEGIN, keys, *args)
        start = RoundStart(RoundOutcome(outcome.decode()), int(token), bool(left_over))
        if start.outcome is not RoundOutcome.BUSY or time.monotonic() >= end:
            return start
        time.sleep(_POLL)


class Lease:
    """The right to go on with a round; ``lost`` is set when another one has it, or the round is closed."""

    def __init__(self, seconds: float) -> None:
        self.lost = threading.Event()
        self.extend(seconds)

    def extend(self, seconds: float) -> None:
        """From now on, renew it for so many seconds."""
        self.end = time.monotonic() + seconds

    def __bool__(self) -> bool:
        return not self.lost.is_set()


@contextmanager
def renewing_lease(token: int, seconds: float) -> Iterator[Lease]:
    """Renews the lease of a round while the block runs, for so many seconds at the most.

    A block that hangs is not to keep others away for ever. A lease that ran out, or that the cache has lost,
    is taken again, if nobody else has it.
    """
    lease = Lease(seconds)
    if not _renew(token):
        lease.lost.set()
        yield lease
        return
    over = threading.Event()

    def renew() -> None:
        while not over.wait(lease_seconds() / 4) and time.monotonic() < lease.end:
            try:
                if not _renew(token):
                    lease.lost.set()
                    return
            except StoreError:
                continue  # it may be back before the lease runs out

    thread = threading.Thread(target=renew, name="round lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join()


def _renew(token: int) -> bool:
    return bool(run_script(_RENEW, ["lease", "round-stats"], token, _ms(lease_seconds())))


def end_round(token: int) -> int:
    """Give the lease back; returns the token of who asked for another round meanwhile, or 0."""
    return int(run_script(_END, ["lease", "round-stats", "rerun"], token))


# Checks of a few: many requests, one task


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
