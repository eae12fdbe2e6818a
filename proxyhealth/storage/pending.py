"""Who may do what, over all processes of a deployment: tokens, the lease of the round, what is asked for.

All of it is in the Redis cache, each decision is one script there, and the time is that of the cache: the
clocks of workers differ, and step back.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from proxyhealth.storage.client import open_cache, run_script

# How long a task that takes what is waiting is waited for, before another one is sent: if it got lost, the
# next round checks everything anyway; if the workers are busy, more of them would only be in its way.
_SENT_FOR = 60_000


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


# Rounds: one at a time, counted


# Checks of a few: many requests, one task


def add_pending(ids: Iterable[str]) -> bool:
    """Note that these proxies are to be checked; returns whether a task has to be sent for it.

    If not, one is on its way and takes them along.
    """
    return bool(run_script(_ADD_PENDING, ["pending", "pending:sent"], _SENT_FOR, *ids))


def release_claim() -> None:
    """The task could not be sent: the next request has to."""
    with open_cache() as cache:
        cache.client.delete(cache.key("pending:sent"))


def take_pending() -> set[UUID]:
    """The proxies that are to be checked, and from now on are so no longer."""
    return {UUID(id.decode()) for id in run_script(_TAKE_PENDING, ["pending", "pending:sent"])}
