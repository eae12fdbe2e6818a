"""The commit of statuses to the snapshot in the Redis cache."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from redis.exceptions import LockError, RedisError, ResponseError

from proxyhealth.exceptions import StoreError, Superseded
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.storage.client import Cache, open_cache, run_script
from proxyhealth.storage.counters import MAX_ERROR
from proxyhealth.storage.document import HEAD_BYTES, Change, Round, dump, merged
from proxyhealth.utils import rfc3339

logger = logging.getLogger(__name__)

_COMMIT_ATTEMPTS = 100

_KEYS = ["snapshot", "lease", "round-stats", "plan", "token"]

# Replaces the document if its head is still the one read, and counts the round. Checks have no lease_token.
_WRITE = f"""
local snapshot, lease, stats, plan, last_token = unpack(KEYS)
local old_head, document, token, lease_token, outcome, message, time = unpack(ARGV)
local is_round = lease_token ~= ''
if is_round then
  -- A client that lost the reply runs the script again.
  if redis.call('HGET', stats, 'committed') == token then return 'written' end
  if is_superseded(lease, stats, lease_token) then return 'superseded' end
end
local head = redis.pcall('GETRANGE', snapshot, 0, {HEAD_BYTES})
if type(head) == 'table' then head = '' end -- an error, because the key holds another type
if head ~= old_head then return 'changed' end
redis.call('SET', snapshot, document)
-- A replica that was promoted may have missed the last tokens.
if tonumber(redis.call('GET', last_token) or '0') < tonumber(token) then
  redis.call('SET', last_token, token)
end
if is_round then
  redis.call('HSET', stats, 'committed', token)
  redis.call('HINCRBY', stats, 'count:' .. outcome, 1)
  if redis.call('HGET', plan, 'ticket') == token then redis.call('DEL', plan) end
  if message ~= '' then redis.call('HSET', stats, 'error', message, 'error_at', time) end
end
if outcome == 'success' then
  redis.call('HSET', stats, 'full', token)
  redis.call('HDEL', stats, 'offline')
end
return 'written'
"""


class Commit(NamedTuple):
    """The result of a commit. The snapshot is ``complete`` once a full round has been committed to it."""

    changes: list[Change]
    complete: bool


def commit(
    statuses: Sequence[ProxyStatus],
    token: int,
    *,
    removed: Iterable[UUID] = (),
    full_round: Round | None = None,
    lease: int | None = None,
) -> Commit:
    """Merge ``statuses`` into the snapshot, and remove the proxies ``removed`` from it, in one step.

    Per proxy, the higher token wins. The commit of a round also removes every proxy that the round did not
    read, and counts the round. It needs the round's own lease, or the one with the token ``lease``.

    Raise ``Superseded`` if a later round took over; the snapshot is then unchanged. Raise ``StoreError`` if
    the cache fails; the commit may still have succeeded, and it is safe to repeat it.
    """
    removed = list(removed)
    with open_cache() as cache, _commit_lock(cache):
        for _ in range(_COMMIT_ATTEMPTS):
            value = _read(cache)
            document, changes = merged(value, statuses, token, removed, full_round)
            head = (value or b"")[: HEAD_BYTES + 1]
            complete = document.complete
            body = dump(document)
            del document, value  # both are large, and so is the body that is sent now
            result = run_script(_WRITE, _KEYS, head, body, token, *_round_args(full_round, lease or token))
            if result == b"superseded":
                raise Superseded("another round has begun while this one ran")
            if result == b"written":
                return Commit(changes, complete)
            # Another process committed in the meantime: merge into its document.
    raise StoreError(f"the snapshot changed during each of {_COMMIT_ATTEMPTS} attempts to commit to it")


def _round_args(full_round: Round | None, lease: int) -> tuple[Any, ...]:
    if full_round is None:
        return "", "", "", ""
    return lease, full_round.outcome, full_round.error[:MAX_ERROR], rfc3339(datetime.now(UTC))


@contextmanager
def _commit_lock(cache: Cache) -> Iterator[None]:
    """Wait for other commits. Of simultaneous commits, all but one would have to merge again.

    The script alone keeps the snapshot consistent, so after a timeout the commit goes on without the lock.
    """
    lock = cache.client.lock(cache.key("commit"), timeout=10, sleep=0.01, thread_local=False)
    acquired = lock.acquire(blocking_timeout=10)
    try:
        yield
    finally:
        if acquired:
            with suppress(LockError, RedisError):  # the lock has expired, or the cache fails
                lock.release()


def _read(cache: Cache) -> bytes | None:
    try:
        value: bytes | None = cache.client.get(cache.key("snapshot"))
    except ResponseError as error:
        logger.error("snapshot replaced: its key holds another type: %s", error)
        return None
    return value
