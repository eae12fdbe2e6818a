"""Who may do what, over all processes of a deployment: tokens, the lease of the round, what is asked for.

All of it is in the Redis cache, each decision is one script there, and the time is that of the cache: the
clocks of workers differ, and step back.
"""

from __future__ import annotations

from datetime import UTC, datetime

from proxyhealth.storage.client import open_cache, run_script
from proxyhealth.utils import rfc3339

MAX_ERROR = 1_000  # characters


# KEYS: rounds, lease. ARGV: outcome, error (or empty), time, token of the round (or empty)
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


# Rounds: one at a time, counted


def count_round(outcome: str, error: str = "", token: int = 0) -> None:
    """Count a round, or a tick, that was not committed, and remember why.

    ``offline`` is said to every reader until a round is committed, unless the round with this token has
    been taken over.
    """
    run_script(
        _COUNT, ["round-stats", "lease"], outcome, error[:MAX_ERROR], rfc3339(datetime.now(UTC)), token
    )


def count_task(name: str, outcome: str, seconds: float) -> None:
    """Count a run of a Celery task, ``success`` or ``failure``, and how long it took."""
    with open_cache() as cache:
        pipe = cache.client.pipeline(transaction=True)
        pipe.hincrby(cache.key("tasks"), f"{name}:{outcome}", 1)
        # Whole numbers, of which a sum is exact.
        pipe.hincrby(cache.key("tasks"), f"{name}:microseconds", round(seconds * 1_000_000))
        pipe.execute()


# Checks of a few: many requests, one task
