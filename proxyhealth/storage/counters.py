"""Counters of rounds and Celery tasks, and the last error of a round.

They are in the Redis cache, so that all processes show the same numbers. A run of a task whose reply is lost
may count twice, and so may a round if another one is counted before it is repeated.
"""

from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import uuid4

from redis.exceptions import ResponseError

from proxyhealth.exceptions import StoreError, StoreRefused
from proxyhealth.storage.client import open_cache, run_script
from proxyhealth.utils import PerProcess, rfc3339

MAX_ERROR = 1_000  # characters

_COUNT_ROUND = """
local stats, lease = unpack(KEYS)
local outcome, message, time, token, id = unpack(ARGV)
-- A client that lost the reply runs the script again.
if redis.call('HGET', stats, 'counted') == id then return end
permit_writes(stats)
if message ~= '' then redis.call('HSET', stats, 'error', message, 'error_at', time) end
-- If another round took over, that round decides whether the prober is offline.
if outcome == 'offline' and not is_superseded(lease, stats, token) then
  redis.call('HSET', stats, 'offline', message)
  redis.call('HSETNX', stats, 'offline_since', token) -- nothing is known since the round began
end
-- Last: after an error reply, the whole script is repeated.
redis.call('HINCRBY', stats, 'count:' .. outcome, 1)
redis.call('HSET', stats, 'counted', id)
"""

# Makes the writes of a round, and leaves nothing behind. ``SET`` comes first: it fails if Redis is full.
_TEST = """
redis.call('SET', KEYS[1], '')
redis.call('DEL', KEYS[1])
redis.call('HINCRBY', KEYS[1], '', 1)
redis.call('HSET', KEYS[1], '', '')
redis.call('DEL', KEYS[1])
"""


class TaskRuns(NamedTuple):
    """The runs of a Celery task by their outcome, and their total duration."""

    success: int = 0
    failure: int = 0
    microseconds: int = 0


class _Result(NamedTuple):
    outcome: str
    error: str
    time: str
    token: int
    id: str


# The rounds that could not be counted. They are counted when the cache accepts writes again.
_uncounted = PerProcess(lambda: deque[_Result](maxlen=1_000))

# Drops them, for tests.
forget = _uncounted.reset


def count_round(outcome: str, error: str = "", token: int = 0) -> None:
    """Count a failed round or a skipped tick, and store its error. Raise ``StoreError``.

    With the outcome ``offline``, every snapshot shows the error until a full round is committed, unless
    another round has superseded the one with this token. If the cache fails, :func:`count_missed` counts it.
    """
    result = _Result(outcome, error[:MAX_ERROR], rfc3339(datetime.now(UTC)), token, uuid4().hex)
    try:
        _count(result)
    except StoreError:
        _uncounted.value.append(result)
        raise


def count_missed() -> None:
    """Count the rounds of this process that could not be counted while the cache failed. Never raise."""
    missed = _uncounted.value
    with suppress(StoreError, IndexError):  # another thread may take the last one
        while missed:
            _count(missed[0])
            missed.popleft()


def _count(result: _Result) -> None:
    try:
        run_script(_COUNT_ROUND, ["round-stats", "lease"], *result)
    except StoreRefused:
        # Plain commands can count where scripts are refused. Only a script can mark the prober as offline.
        with open_cache() as cache:
            pipe = cache.client.pipeline(transaction=True)
            pipe.hincrby(cache.key("round-stats"), f"count:{result.outcome}", 1)
            if result.error:
                pipe.hset(cache.key("round-stats"), mapping={"error": result.error, "error_at": result.time})
            _execute_once(pipe)


def _execute_once(pipe: Any) -> None:
    """Execute a transaction. Do not repeat it after an error reply to one of its commands.

    Redis has executed the other commands, so they would count twice.
    """
    for reply in pipe.execute(raise_on_error=False):
        if isinstance(reply, ResponseError):
            raise reply


def find_refusal() -> str:
    """Return the reason why the cache refuses what rounds need, or an empty string. Never raise."""
    try:
        run_script(_TEST, ["write-test"])
    except StoreRefused as error:
        return str(error)
    except StoreError:
        return ""  # the cache fails, and the next read reports that
    return ""


def count_task(name: str, outcome: str, seconds: float) -> None:
    """Count a run of a Celery task by outcome, and add up the durations. Raise ``StoreError``."""
    with open_cache() as cache:
        pipe = cache.client.pipeline(transaction=True)
        pipe.hincrby(cache.key("tasks"), f"{name}:{outcome}", 1)
        # Integers, because a sum of floats would drift.
        pipe.hincrby(cache.key("tasks"), f"{name}:microseconds", round(seconds * 1_000_000))
        _execute_once(pipe)
