"""Counters of rounds and Celery tasks, and the last error of a round.

They are in the Redis cache, so that all processes show the same numbers.
"""

from datetime import UTC, datetime

from proxyhealth.storage.client import open_cache, run_script
from proxyhealth.utils import rfc3339

MAX_ERROR = 1_000  # characters

_COUNT_ROUND = """
local stats, lease = unpack(KEYS)
local outcome, message, time, token = unpack(ARGV)
redis.call('HINCRBY', stats, 'count:' .. outcome, 1)
if message ~= '' then redis.call('HSET', stats, 'error', message, 'error_at', time) end
-- If another round took over, that round decides whether the prober is offline.
if outcome == 'offline' and not is_superseded(lease, stats, token) then
  redis.call('HSET', stats, 'offline', message)
end
"""


def count_round(outcome: str, error: str = "", token: int = 0) -> None:
    """Count a failed round or a skipped tick, and store its error. Raise ``StoreError``.

    With the outcome ``offline``, every snapshot shows the error until a full round is committed, unless
    another round has superseded the one with this token.
    """
    now = rfc3339(datetime.now(UTC))
    run_script(_COUNT_ROUND, ["round-stats", "lease"], outcome, error[:MAX_ERROR], now, token)


def count_task(name: str, outcome: str, seconds: float) -> None:
    """Count a run of a Celery task by outcome, and add up the durations. Raise ``StoreError``."""
    with open_cache() as cache:
        pipe = cache.client.pipeline(transaction=True)
        pipe.hincrby(cache.key("tasks"), f"{name}:{outcome}", 1)
        # Integers, because a sum of floats would drift.
        pipe.hincrby(cache.key("tasks"), f"{name}:microseconds", round(seconds * 1_000_000))
        pipe.execute()
