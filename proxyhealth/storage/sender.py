"""The lock of the process that sends the signals of changed statuses, and the receivers that hang."""

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

from proxyhealth.conf import conf
from proxyhealth.exceptions import StoreError
from proxyhealth.storage.client import open_cache, run_script
from proxyhealth.utils import PerProcess

logger = logging.getLogger(__name__)

# Milliseconds after which the lock of a killed process is free. A task is killed before.
_TIMEOUT = 60_000

_TAKE = """
local left = redis.call('PTTL', KEYS[1])
-- One above the maximum is from before the clock was set back.
if left >= 0 and left <= tonumber(ARGV[2]) then
  -- A client that lost the reply runs the script again.
  return redis.pcall('GET', KEYS[1]) == ARGV[1] and 1 or 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_NOTE_HANGING = """
if redis.call('TYPE', KEYS[1]).ok ~= 'set' then redis.call('DEL', KEYS[1]) end
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""

_RELEASE = "if redis.pcall('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


# In a pool of threads, Celery cannot end a receiver that hangs. It must not occupy more than one of them.
_lock = PerProcess(threading.Lock)


@contextmanager
def only_sender() -> Iterator[bool]:
    """Hold the lock in the block, and yield True. Yield False if another sender has it, or Redis is down.

    One sender at a time keeps the signals of a proxy in order. And a receiver that hangs cannot occupy all
    processes of the workers.
    """
    lock = _lock.value
    if not lock.acquire(blocking=False):
        logger.info("this process still sends signals, so it does not begin again")
        yield False
        return
    try:
        id = uuid4().hex
        held = _take(id)
        try:
            yield held
        finally:
            if held:
                with suppress(StoreError):  # it expires
                    run_script(_RELEASE, ["signals"], id)
    finally:
        lock.release()


def note_hanging(name: str) -> None:
    """Let all processes skip the receiver with this name for some minutes. Never raise.

    If its process is killed, the next round after the lock has expired must still know it.
    """
    timeout = math.ceil(_TIMEOUT / 1_000 + 2 * conf.INTERVAL)
    with suppress(StoreError):
        run_script(_NOTE_HANGING, ["signals:hanging"], name, timeout)


def read_hanging() -> set[str]:
    """Return the names of the receivers to skip. Never raise."""
    with suppress(StoreError), open_cache() as cache:
        return {name.decode(errors="replace") for name in cache.client.smembers(cache.key("signals:hanging"))}
    return set()


def _take(id: str) -> bool:
    try:
        return bool(run_script(_TAKE, ["signals"], id, _TIMEOUT))
    except StoreError as error:
        logger.warning("no signals are sent until the cache is back: %s", error)
        return False
