"""The proxies that wait for a check, so that many requests become one Celery task.

The first request claims the task and sends it. The task checks all proxies that are added before it runs.
"""

import enum
import logging
from collections.abc import Iterable
from uuid import UUID, uuid4

from proxyhealth.storage.client import open_cache, run_script

logger = logging.getLogger(__name__)

# Milliseconds until a task may be lost. Before that, the workers are probably busy, and another task would
# not help. The next round checks every proxy anyway.
_CLAIM_TIMEOUT = 60_000

# Milliseconds for which the task that checks again may be late. Two such tasks do no harm.
_RECHECK_GRACE = 5_000

_KEYS = ["pending", "pending:sent", "round-stats"]

# The change tells readers that their rows are older, whatever the clock of the process that saved one. An
# invalid key of the counters does not prevent the check.
_ADD_PENDING = """
local pending, claim, stats = unpack(KEYS)
local timeout, change = unpack(ARGV, 1, 2)
local was_waiting = redis.call('EXISTS', pending)
redis.pcall('PERSIST', stats) -- see permit_writes
redis.pcall('HSET', stats, 'change', change)
-- In parts, because Lua's unpack has a limit.
for i = 3, #ARGV, 1000 do
  redis.call('SADD', pending, unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
-- A claim above the maximum is from before the clock was set back.
local left = redis.call('PTTL', claim)
if left > 0 and left <= tonumber(timeout) then
  -- A client that lost the reply runs the script again.
  return redis.pcall('GET', claim) == change and 'yes' or 'no'
end
redis.call('SET', claim, change, 'PX', timeout)
local was_sent = redis.pcall('HGET', stats, 'check_sent') == '1'
redis.pcall('HSET', stats, 'check_sent', '1')
return was_waiting == 1 and was_sent and 'if lost' or 'yes'
"""

_RELEASE = """
redis.call('DEL', KEYS[2])
redis.pcall('HDEL', KEYS[3], 'check_sent')
"""

_TAKE_PENDING = """
local ids = redis.call('SMEMBERS', KEYS[1])
redis.call('DEL', KEYS[1], KEYS[2])
return ids
"""


class SendTask(enum.Enum):
    """The answer to a request: NO if a task is queued. IF_LOST if one was, but did not run for a minute."""

    NO = "no"
    YES = "yes"
    IF_LOST = "if lost"


def add_pending(ids: Iterable[str]) -> SendTask:
    """Add ids of proxies, and say if the caller must send a task.

    All processes read the rows anew: the snapshot has another ``change``.
    """
    return SendTask(run_script(_ADD_PENDING, _KEYS, _CLAIM_TIMEOUT, uuid4().hex, *ids).decode())


def release_claim() -> None:
    """Make the next request send a task, because this request could not. Raise ``StoreError``."""
    run_script(_RELEASE, _KEYS)


def claim_recheck(seconds: float) -> bool:
    """Return True if the caller must send the task that checks again, ``seconds`` from now.

    The claim expires soon after it, because the task may be lost. Raise ``StoreError``.
    """
    with open_cache() as cache:
        name, value = cache.key("recheck"), uuid4().hex
        if cache.client.set(name, value, nx=True, px=_recheck_expiry(seconds)):
            return True
        # The client repeats a command whose reply is lost.
        return bool(cache.client.get(name) == value.encode())


def hold_recheck(seconds: float) -> None:
    """Keep others from sending the task while it runs, for at most ``seconds``. Raise ``StoreError``."""
    with open_cache() as cache:
        cache.client.set(cache.key("recheck"), "", px=_recheck_expiry(seconds))


def release_recheck() -> None:
    """Make the next contradicting result send the task again. Raise ``StoreError``."""
    with open_cache() as cache:
        cache.client.delete(cache.key("recheck"))


def _recheck_expiry(seconds: float) -> int:
    return int(1000 * seconds) + _RECHECK_GRACE


# Milliseconds by which a task may run early or late, by the clock of its worker.
_LATE = 2_000

_CLAIM_DELIVERY = """
local left = redis.call('PTTL', KEYS[1])
local wanted, late = tonumber(ARGV[2]), tonumber(ARGV[3])
-- One that is almost over belongs to a task that runs now. One that is much later is not for what is due
-- before, or it is from before the clock was set back.
if left > late and left <= wanted + late then
  -- A client that lost the reply runs the script again.
  return redis.pcall('GET', KEYS[1]) == ARGV[1] and 1 or 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


def claim_delivery(seconds: float) -> bool:
    """Return True if the caller must send the task that delivers, ``seconds`` from now.

    Another one may be about to run before that, and will then request the next. Raise ``StoreError``.
    """
    milliseconds = max(1, round(1_000 * seconds))
    return bool(run_script(_CLAIM_DELIVERY, ["delivery"], uuid4().hex, milliseconds, _LATE))


def take_pending() -> set[UUID]:
    """Remove and return the ids of all pending proxies. Raise ``StoreError``."""
    ids, invalid = set(), []
    for value in run_script(_TAKE_PENDING, _KEYS):
        try:
            ids.add(UUID(value.decode()))
        except ValueError:
            invalid.append(value)
    if invalid:
        # They must not prevent the check of the others.
        logger.error(
            "cache repaired: removed %d values from 'pending', because they are not ids, such as %r",
            len(invalid),
            invalid[0][:60],
        )
    return ids
