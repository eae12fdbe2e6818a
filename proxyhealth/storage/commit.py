"""The snapshot in the Redis cache: how it is read, and how statuses are committed to it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from redis.exceptions import LockError, RedisError, ResponseError

from proxyhealth.exceptions import OutdatedRound, StoreError, Superseded
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.storage.client import Cache, open_cache
from proxyhealth.storage.counters import MAX_ERROR
from proxyhealth.storage.document import HEAD_BYTES, Change, Round, dump, merged
from proxyhealth.utils import rfc3339

logger = logging.getLogger(__name__)

_COMMIT_ATTEMPTS = 100


# Writes a document if nobody has written another one since, and if the round still has its lease.
# KEYS: snapshot, lease, rounds, plan, token
# ARGV: beginning of the document that was read, new document, token of it; and of a round: token of its
#       lease (or empty), outcome, token of a full one (or empty), error (or empty), time
_WRITE = f"""
if ARGV[4] ~= '' then
  -- Who did not hear the answer asks again.
  if redis.call('HGET', KEYS[3], 'committed') == ARGV[3] then return 'written' end
  local held = redis.call('GET', KEYS[2])
  if held and held ~= ARGV[4] then return 'superseded' end
  if tonumber(redis.call('HGET', KEYS[3], 'closed') or '0') >= tonumber(ARGV[4]) then return 'superseded' end
end
local head = redis.pcall('GETRANGE', KEYS[1], 0, {HEAD_BYTES})
if type(head) == 'table' then head = '' end
if head ~= ARGV[1] then return 'changed' end
redis.call('SET', KEYS[1], ARGV[2])
-- A replica that was promoted may have missed the tokens that it is told of here.
local known = tonumber(redis.call('GET', KEYS[5]) or '0')
if known < tonumber(ARGV[3]) then redis.call('SET', KEYS[5], ARGV[3]) end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[3], 'committed', ARGV[3])
  redis.call('HINCRBY', KEYS[3], 'count:' .. ARGV[5], 1)
  if redis.call('HGET', KEYS[4], 'ticket') == ARGV[3] then redis.call('DEL', KEYS[4]) end
  if ARGV[7] ~= '' then redis.call('HSET', KEYS[3], 'error', ARGV[7], 'error_at', ARGV[8]) end
end
if ARGV[6] ~= '' then
  redis.call('HSET', KEYS[3], 'full', ARGV[6])
  redis.call('HDEL', KEYS[3], 'offline')
end
return 'written'
"""


class Commit(NamedTuple):
    """What a commit did. Not ``complete`` is a snapshot that no full round has been committed to."""

    changes: list[Change]
    complete: bool


# Commits


def commit(
    statuses: Sequence[ProxyStatus],
    token: int,
    *,
    removed: Iterable[UUID] = (),
    full_round: Round | None = None,
    lease: int | None = None,
) -> Commit:
    """Merge ``statuses`` into the snapshot in one step, and take ``removed`` out of it.

    What was checked under a higher token stays as it is. A round also takes out every proxy that it did
    not find, is counted in the same step, and needs the lease of the round: its own, or that of the
    ``lease`` under which it is committed. Raises ``StoreError``; if it is ``Superseded``, nothing is changed,
    else the answer of the cache may have been lost: to try again does it once.
    """
    removed = list(removed)
    outcome = full_round.outcome if full_round else ""
    of_round = [
        (lease or token) if full_round else "",
        outcome,
        token if outcome == "success" else "",
        full_round.error[:MAX_ERROR] if full_round else "",
        rfc3339(datetime.now(UTC)),
    ]
    with open_cache() as cache, _commit_lock(cache):
        keys = [cache.key(name) for name in ("snapshot", "lease", "round-stats", "plan", "token")]
        for _ in range(_COMMIT_ATTEMPTS):
            value = _get(cache.client, keys[0])
            try:
                document, changes = merged(value, statuses, token, removed, full_round)
            except OutdatedRound:
                raise Superseded("a later round was committed before this one") from None
            head = (value or b"")[: HEAD_BYTES + 1]
            complete = document.complete
            body = dump(document)
            del document, value  # they are large, and so is what is sent now
            answer = cache.client.eval(_WRITE, len(keys), *keys, head, body, token, *of_round)
            if answer == b"superseded":
                raise Superseded("another round has begun while this one ran")
            if answer == b"written":
                return Commit(changes, complete)
            # Somebody else committed in between: merge into theirs.
    raise StoreError(f"the snapshot changed under each of {_COMMIT_ATTEMPTS} attempts to commit to it")


@contextmanager
def _commit_lock(cache: Cache) -> Iterator[None]:
    """One committer after the other: with a large snapshot, all but one would only lose their work.

    It is the write that keeps the snapshot whole, so who gets no turn in time goes on without.
    """
    lock = cache.client.lock(cache.key("commit"), timeout=10, sleep=0.01, thread_local=False)
    acquired = lock.acquire(blocking_timeout=10)
    try:
        yield
    finally:
        if acquired:
            with suppress(LockError, RedisError):  # it took longer than its turn, or is away; all is written
                lock.release()


def _get(client: Any, key: str) -> bytes | None:
    try:
        value: bytes | None = client.get(key)
    except ResponseError as error:
        logger.error("there is something else under the key of the snapshot: %s", error)
        return None
    return value


# Reads
