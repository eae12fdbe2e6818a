"""The commit of statuses to the snapshot in the Redis cache."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

from redis.exceptions import RedisError, ResponseError

from proxyhealth.exceptions import StoreError, Superseded, TokenTooLow, UnusableSnapshot
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.storage.client import open_cache, run_script
from proxyhealth.storage.counters import MAX_ERROR
from proxyhealth.storage.deployment import read_identity
from proxyhealth.storage.document import DAMAGE, HEAD_BYTES, dump, load
from proxyhealth.storage.merge import NO_MEMORY, Memory, Merged, Results, Round, merged
from proxyhealth.utils import rfc3339

logger = logging.getLogger(__name__)

_COMMIT_ATTEMPTS = 100

# Seconds for which a commit waits for others, and seconds after which the lock of a dead process expires. A
# commit takes less; if it takes more, the next one begins early, and one of the two merges again.
_LOCK_WAIT = 10
_LOCK_TIMEOUT = 1

_KEYS = ["snapshot", "lease", "round-stats", "plan", "token", "outbox"]

# Replaces the document if its head is still the one read, appends the entries to the outbox, and counts the
# round. Returns the length of the outbox. Checks have no lease_token.
_WRITE = f"""
local snapshot, lease, stats, plan, last_token, outbox = unpack(KEYS)
local old_head, document, token, is_compared, lease_token = unpack(ARGV, 1, 5)
local outcome, message, time, deployment = unpack(ARGV, 6, 9)
local is_round = lease_token ~= ''
if is_round then
  -- A client that lost the reply runs the script again.
  if redis.call('HGET', stats, 'committed') == token then return redis.call('LLEN', outbox) end
  if is_superseded(lease, stats, lease_token) then return 'superseded' end
end
local head = redis.pcall('GETRANGE', snapshot, 0, {HEAD_BYTES})
if type(head) == 'table' then head = '' end -- an error, because the key holds another type
if head ~= old_head then return 'changed' end
local kind = redis.call('TYPE', outbox).ok
if kind ~= 'list' and kind ~= 'none' then redis.call('DEL', outbox) end
local length = redis.call('LLEN', outbox)
-- The length that it should have, which tells a later round of lost entries.
if is_compared == '1' then redis.call('HDEL', stats, 'outbox') end
redis.call('HSETNX', stats, 'outbox', length)
redis.call('HINCRBY', stats, 'outbox', #ARGV - 9)
length = length + #ARGV - 9
-- Before the document: a user of an earlier version may lack the permission, and no change may be lost. In
-- parts, because Lua's unpack has a limit. After the first write, no other one fails.
for i = 10, #ARGV, 1000 do
  redis.call('RPUSH', outbox, unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
redis.call('SET', snapshot, document)
-- A replica that was promoted may have missed the last tokens.
if tonumber(redis.call('GET', last_token) or '0') < tonumber(token) then
  redis.call('SET', last_token, token)
end
if is_round then
  redis.call('HSET', stats, 'committed', token)
  if deployment ~= '' then redis.call('HSET', stats, 'deployment', deployment) end
  redis.call('HINCRBY', stats, 'count:' .. outcome, 1)
  if redis.call('HGET', plan, 'ticket') == token then redis.call('DEL', plan) end
  if message ~= '' then redis.call('HSET', stats, 'error', message, 'error_at', time) end
end
if outcome == 'success' then
  redis.call('HSET', stats, 'full', token)
  redis.call('HDEL', stats, 'offline', 'offline_since')
end
return length
"""


_RAISE = """
local last_token, minimum = KEYS[1], ARGV[1]
if tonumber(redis.call('GET', last_token) or '0') < tonumber(minimum) then
  redis.call('SET', last_token, minimum)
end
"""


class Commit(NamedTuple):
    """The result of a commit.

    The snapshot is ``complete`` once a full round has been committed to it. ``waiting`` is the number of
    proxies whose last result contradicts their status, and ``outbox`` that of entries to record.
    """

    complete: bool
    waiting: int = 0
    outbox: int = 0


def commit(
    statuses: Sequence[ProxyStatus],
    token: int,
    *,
    removed: Iterable[UUID] = (),
    full_round: Round | None = None,
    lease: int | None = None,
    memory: Memory = NO_MEMORY,
) -> Commit:
    """Merge ``statuses`` into the snapshot, and remove the proxies ``removed`` from it, in one step.

    Per proxy, the higher token wins. The commit of a round also removes every proxy that the round did not
    read, and counts the round. It needs the round's own lease, or the one with the token ``lease``. The
    changes of confirmed statuses come into the outbox in the same step. ``memory`` has what the cache has
    lost.

    Only a round replaces a document that cannot be read, or that belongs to another deployment. A check
    changes neither: for the first, the result is not ``complete``; for the second, raise ``ForeignSnapshot``.

    Raise ``Superseded`` if a later round took over, or ``TokenTooLow`` if the history has later tokens; the
    snapshot is then unchanged. Raise ``StoreError`` if the cache fails; the commit may still have succeeded,
    and it is safe to repeat it.
    """
    deployment = read_identity()
    merge = partial(
        merged,
        results=Results(statuses, token, list(removed), full_round),
        memory=memory,
        deployment=deployment,
        replace_foreign=full_round is not None and lease is None,
    )
    args = *_round_args(full_round, lease or token), deployment
    with _commit_lock():
        for _ in range(_COMMIT_ATTEMPTS):
            if written := _try_to_write(merge, token, *args):
                return written
            # Another process committed in the meantime: merge into its document.
    raise StoreError(f"the snapshot changed during each of {_COMMIT_ATTEMPTS} attempts to commit to it")


def _try_to_write(merge: Callable[..., Merged], token: int, *args: Any) -> Commit | None:
    """Merge and write once. Return None if the document changed in between."""
    value, state = _read(token)
    try:
        document, entries, is_compared = merge(value, **state)
    except UnusableSnapshot as error:
        logger.error("check not committed, a round is needed: %s", error)
        return Commit(complete=False)
    except TokenTooLow as error:
        run_script(_RAISE, ["token"], error.last_token)
        raise
    head = (value or b"")[: HEAD_BYTES + 1]
    complete, waiting = document.complete, document.waiting
    body = dump(document)
    del document, value  # both are large, and so is the body that is sent now
    result = run_script(_WRITE, _KEYS, head, body, token, int(is_compared), *args, *entries)
    if result == b"superseded":
        raise Superseded("another round has begun while this one ran")
    return None if result == b"changed" else Commit(complete, waiting, int(result))


def _round_args(full_round: Round | None, lease: int) -> tuple[Any, ...]:
    if full_round is None:
        return "", "", "", ""
    return lease, full_round.outcome, full_round.error[:MAX_ERROR], rfc3339(datetime.now(UTC))


@contextmanager
def _commit_lock() -> Iterator[None]:
    """Wait for other commits. Of simultaneous commits, all but one would have to merge again.

    The script alone keeps the snapshot consistent, so after a timeout the commit goes on without the lock.
    """
    with open_cache() as cache:
        lock = cache.client.lock(cache.key("commit"), timeout=_LOCK_TIMEOUT, sleep=0.01, thread_local=False)
        acquired = lock.acquire(blocking_timeout=_LOCK_WAIT)
    try:
        yield
    finally:
        if acquired:
            with suppress(StoreError), open_cache():  # the lock has expired, or the cache fails
                lock.release()


class _State(TypedDict):
    """The options of :func:`merged` that the cache decides."""

    last_token: int
    offline_since: int | None
    has_lost_entries: bool


def _read(token: int) -> tuple[bytes | None, _State]:
    """Return the document, and what else a merge needs. The last token is ``token`` or a later one."""
    with open_cache() as cache:
        pipe = cache.client.pipeline(transaction=True)
        pipe.get(cache.key("snapshot"))
        pipe.get(cache.key("token"))
        pipe.hget(cache.key("round-stats"), "offline_since")
        pipe.hget(cache.key("round-stats"), "outbox")
        pipe.llen(cache.key("outbox"))
        value, last_token, offline_since, expected, length = pipe.execute(raise_on_error=False)
        if isinstance(value, ResponseError) and str(value).startswith("WRONGTYPE"):
            logger.error("snapshot replaced: its key holds another type: %s", value)
            value = None
        if isinstance(value, RedisError):
            raise value  # for example, a user without the permission to read the key
    return value, {
        "last_token": max(token, _integer(last_token) or 0),
        "offline_since": _integer(offline_since),
        "has_lost_entries": (_integer(expected) or 0) > (_integer(length) or 0),
    }


def read_waiting() -> list[tuple[int, UUID]]:
    """Return the token of the last result and the id of each proxy whose last result contradicts its status.

    The oldest result comes first. Raise ``StoreError``.
    """
    value, state = _read(0)
    try:
        rows = load(value, state["last_token"]).judgements if value else {}
    except DAMAGE:
        return []  # the next round replaces the document
    return sorted((row["ticket"], UUID(id)) for id, row in rows.items() if row.get("raw"))


def _integer(reply: Any) -> int | None:
    try:
        return int(reply)
    except (TypeError, ValueError):  # no value, an error, or another text
        return None
