"""The proxies that wait for a check, so that many requests become one Celery task.

The first request claims the task and sends it; it takes along what is added before it runs.
"""

from collections.abc import Iterable
from uuid import UUID

from proxyhealth.storage.client import open_cache, run_script

# Milliseconds until a task counts as lost and another one is sent. Until then more tasks would not help:
# the workers are busy. And the next round checks every proxy anyway.
_CLAIM_TIMEOUT = 60_000

_KEYS = ["pending", "pending:sent"]

_ADD_PENDING = """
local pending, claim = unpack(KEYS)
local timeout = ARGV[1]
-- In parts, because Lua's unpack has a limit.
for i = 2, #ARGV, 1000 do
  redis.call('SADD', pending, unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
-- A claim that lasts longer than any claim can is from before the clock stepped back.
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
    """Add proxies, and return whether the caller has to send a task. If not, one is already on its way."""
    return bool(run_script(_ADD_PENDING, _KEYS, _CLAIM_TIMEOUT, *ids))


def release_claim() -> None:
    """Make the next request send a task, because this one could not be sent."""
    with open_cache() as cache:
        cache.client.delete(cache.key("pending:sent"))


def take_pending() -> set[UUID]:
    """Take all proxies that wait."""
    return {UUID(id.decode()) for id in run_script(_TAKE_PENDING, _KEYS)}
