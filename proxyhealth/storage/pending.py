"""The proxies that wait for a check, so that many requests become one Celery task.

The first request claims the task and sends it. The task checks all proxies that are added before it runs.
"""

import logging
from collections.abc import Iterable
from uuid import UUID

from proxyhealth.storage.client import open_cache, run_script

logger = logging.getLogger(__name__)

# Milliseconds until a task counts as lost and another one is sent. Before that, the workers are probably
# busy, and another task would not help. The next round checks every proxy anyway.
_CLAIM_TIMEOUT = 60_000

_KEYS = ["pending", "pending:sent"]

_ADD_PENDING = """
local pending, claim = unpack(KEYS)
local timeout = ARGV[1]
-- In parts, because Lua's unpack has a limit.
for i = 2, #ARGV, 1000 do
  redis.call('SADD', pending, unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
-- A claim above the maximum is from before the clock was set back.
local left = redis.call('PTTL', claim)
if left > 0 and left <= tonumber(timeout) then return 0 end
redis.call('SET', claim, '1', 'PX', timeout)
return 1
"""

_TAKE_PENDING = """
local ids = redis.call('SMEMBERS', KEYS[1])
redis.call('DEL', unpack(KEYS))
return ids
"""


def add_pending(ids: Iterable[str]) -> bool:
    """Add ids of proxies. Return True if the caller must send a task, False if one is already queued."""
    return bool(run_script(_ADD_PENDING, _KEYS, _CLAIM_TIMEOUT, *ids))


def release_claim() -> None:
    """Make the next request send a task, because this request could not. Raise ``StoreError``."""
    with open_cache() as cache:
        cache.client.delete(cache.key("pending:sent"))


def take_pending() -> set[UUID]:
    """Remove and return the ids of all pending proxies. Raise ``StoreError``."""
    ids = set()
    for value in run_script(_TAKE_PENDING, _KEYS):
        try:
            ids.add(UUID(value.decode()))
        except ValueError:
            # One invalid id must not prevent the check of the others.
            logger.error("cache repaired: removed %r from 'pending', because it is not an id", value[:60])
    return ids
