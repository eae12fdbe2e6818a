"""Who may do what, over all processes of a deployment: tickets, the lease of the round, what is asked for.

All of it is in the Redis cache, each decision is one script there, and the time is that of the cache: the
clocks of workers differ, and step back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from proxyhealth.conf import conf
from proxyhealth.report import rfc3339
from proxyhealth.storage.client import StoreError, open_cache

# What a round that has died costs at the most. A living one renews its lease.
MAX_LEASE = 10.0

# How long a task that takes what is waiting is waited for, before another one is sent: if it got lost, the
# next round checks everything anyway; if the workers are busy, more of them would only be in its way.
_SENT_FOR = 60_000
_KEPT_FOR = 24 * 3_600

_POLL = 0.1

MAX_ERROR = 1_000  # characters

# A ticket tells which of two checks began later: the cache's own time, made to go up only.
_TICKET = """
local function take_ticket(key)
  local time = redis.call('TIME')
  local ticket = time[1] * 1000000 + time[2]
  local last = tonumber(redis.call('GET', key) or '0')
  if ticket <= last then ticket = last + 1 end
  ticket = string.format('%.0f', ticket)
  redis.call('SET', key, ticket)
  return ticket
end
"""

_TAKE_TICKET = f"{_TICKET} return take_ticket(KEYS[1])"

# KEYS: ticket, lease, rounds, tick, wanted, plan
# ARGV: lease (ms), longest lease (ms), gap between ticks (µs, or empty), ticket of the request (or empty),
#       whether the round under way is to be followed by another one, age of a round that will do (µs)
_BEGIN = f"""{_TICKET}
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
local ticket = take_ticket(KEYS[1])
redis.call('SET', KEYS[2], ticket, 'PX', ARGV[1])
redis.call('DEL', KEYS[5])
return {{'begun', ticket, redis.call('EXISTS', KEYS[6])}}
"""

# KEYS: lease, rounds. ARGV: ticket, lease (ms)
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

# KEYS: lease, rounds, wanted. ARGV: ticket
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

# KEYS: rounds, lease. ARGV: outcome, error (or empty), time, ticket of the round (or empty)
_COUNT = """
redis.call('HINCRBY', KEYS[1], 'count:' .. ARGV[1], 1)
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'error', ARGV[2], 'error_at', ARGV[3]) end
if ARGV[1] ~= 'offline' then return end
-- What a round that was taken over found out is not true of the one after it.
local held = redis.call('GET', KEYS[2])
if held and held ~= ARGV[4] then return end
if tonumber(redis.call('HGET', KEYS[1], 'closed') or '0') >= tonumber(ARGV[4]) then return end
redis.call('HSET', KEYS[1], 'offline', ARGV[2])
"""

# KEYS: plan, lease. ARGV: ticket, plan, how long it is kept (s)
_SAVE_PLAN = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'ticket', ARGV[1], 'plan', ARGV[2])
return redis.call('EXPIRE', KEYS[1], ARGV[3])
"""

# KEYS: plan. ARGV: ticket
_DROP_PLAN = """
if redis.call('HGET', KEYS[1], 'ticket') == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

# KEYS: pending, sent. ARGV: how long a task is waited for (ms), ids
_ADD_PENDING = """
for i = 2, #ARGV, 1000 do
  redis.call('SADD', KEYS[1], unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
local left = redis.call('PTTL', KEYS[2])
if left > 0 and left <= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], '1', 'PX', ARGV[1])
return 1
"""

# KEYS: pending, sent
_TAKE_PENDING = """
local ids = redis.call('SMEMBERS', KEYS[1])
redis.call('DEL', KEYS[1], KEYS[2])
return ids
"""


def _run(script: str, keys: Iterable[str], *args: Any) -> Any:
    with open_cache() as cache:
        names = [cache.key(key) for key in keys]
        return cache.client.eval(script, len(names), *names, *args)


def take_ticket() -> int:
    """To be taken before the proxies are read: on commit, per proxy, the higher ticket wins.

    Raises ``StoreError``, as all here does.
    """
    return int(_run(_TAKE_TICKET, ["ticket"]))


# Rounds: one at a time, counted


class Begun(NamedTuple):
    """Whether a round may begin, with which ticket, and whether a plan of one before it is left over.

    ``ticket`` is 0 if not, and ``why`` says: ``running`` (another one is), ``early`` (a tick too soon after
    the last one), ``done`` (there has been one since it was asked for).
    """

    why: str
    ticket: int
    left_over: bool


def lease_seconds() -> float:
    """For how long a dead round keeps others away: so short that one tick is lost to it, not two."""
    return min(MAX_LEASE, max(1.0, conf.INTERVAL / 2))


def begin_round(
    *,
    gap: float | None = None,
    asked: int | None = None,
    follow: bool = False,
    fresh: float = 0,
    wait: float = 0,
) -> Begun:
    """Take the lease of the round, if no other round has it.

    ``gap`` is that of a tick: seconds that must have passed since the last one, so that two schedulers,
    or the backlog of one, make no more rounds than one does. ``asked`` is the ticket of a request; a full
    round that began after it fulfils it, and so does one that began less than ``fresh`` seconds ago. With
    ``follow``, a round that is running is followed by another one. ``wait`` is how many seconds to wait
    for the lease.
    """
    end = time.monotonic() + wait
    keys = ["ticket", "round", "rounds", "tick", "wanted", "plan"]
    args = [
        _ms(lease_seconds()),
        _ms(MAX_LEASE),
        "" if gap is None else int(gap * 1_000_000),
        "" if asked is None else asked,
        int(follow),
        int(fresh * 1_000_000),
    ]
    while True:
        why, ticket, left_over = _run(_BEGIN, keys, *args)
        begun = Begun(why.decode(), int(ticket), bool(left_over))
        if begun.why != "running" or time.monotonic() >= end:
            return begun
        time.sleep(_POLL)


class Lease:
    """The right to go on with a round; ``lost`` is set when another one has it, or the round is closed."""

    def __init__(self, seconds: float) -> None:
        self.lost = threading.Event()
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """From now on, renew it for so many seconds."""
        self.end = time.monotonic() + seconds

    def __bool__(self) -> bool:
        return not self.lost.is_set()


@contextmanager
def kept(ticket: int, seconds: float) -> Iterator[Lease]:
    """Renews the lease of a round while the block runs, for so many seconds at the most.

    A block that hangs is not to keep others away for ever. A lease that ran out, or that the cache has lost,
    is taken again, if nobody else has it.
    """
    lease = Lease(seconds)
    if not _renew(ticket):
        lease.lost.set()
        yield lease
        return
    over = threading.Event()

    def renew() -> None:
        while not over.wait(lease_seconds() / 4) and time.monotonic() < lease.end:
            try:
                if not _renew(ticket):
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


def _renew(ticket: int) -> bool:
    return bool(_run(_RENEW, ["round", "rounds"], ticket, _ms(lease_seconds())))


def end_round(ticket: int) -> int:
    """Give the lease back; returns the ticket of who asked for another round meanwhile, or 0."""
    return int(_run(_END, ["round", "rounds", "wanted"], ticket))


def count_round(outcome: str, error: str = "", ticket: int = 0) -> None:
    """Count a round, or a tick, that was not committed, and remember why.

    ``offline`` is said to every reader until a round is committed, unless the round with this ticket has
    been taken over.
    """
    _run(_COUNT, ["rounds", "round"], outcome, error[:MAX_ERROR], rfc3339(datetime.now(UTC)), ticket)


def count_task(name: str, outcome: str, seconds: float) -> None:
    """Count a run of a Celery task, ``success`` or ``failure``, and how long it took."""
    with open_cache() as cache:
        pipe = cache.client.pipeline(transaction=True)
        pipe.hincrby(cache.key("tasks"), f"{name}:{outcome}", 1)
        # Whole numbers, of which a sum is exact.
        pipe.hincrby(cache.key("tasks"), f"{name}:microseconds", round(seconds * 1_000_000))
        pipe.execute()


def save_plan(ticket: int, plan: str) -> bool:
    """Keep the plan of a round that is run by many tasks, until it is committed; False if it has no lease."""
    return bool(_run(_SAVE_PLAN, ["plan", "round"], ticket, plan, _KEPT_FOR))


def load_plan() -> str:
    """The plan that is kept, or an empty string."""
    with open_cache() as cache:
        return (cache.client.hget(cache.key("plan"), "plan") or b"").decode()


def drop_plan(ticket: int) -> None:
    """Forget the plan of this round, if it is the one that is kept."""
    _run(_DROP_PLAN, ["plan"], ticket)


# Checks of a few: many requests, one task


def add_pending(ids: Iterable[str]) -> bool:
    """Note that these proxies are to be checked; returns whether a task has to be sent for it.

    If not, one is on its way and takes them along.
    """
    return bool(_run(_ADD_PENDING, ["pending", "pending:sent"], _SENT_FOR, *ids))


def not_sent() -> None:
    """The task could not be sent: the next request has to."""
    with open_cache() as cache:
        cache.client.delete(cache.key("pending:sent"))


def take_pending() -> set[UUID]:
    """The proxies that are to be checked, and from now on are so no longer."""
    return {UUID(id.decode()) for id in _run(_TAKE_PENDING, ["pending", "pending:sent"])}


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
