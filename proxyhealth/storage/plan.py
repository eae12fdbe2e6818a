"""The stored plan of the last shared round: its shards, their claims, and their results.

Failures raise ``StoreError``.
"""

from collections.abc import Sequence

from proxyhealth.storage.client import open_cache, run_script

_TTL = 24 * 3_600  # seconds

# Limits above any deployment: whatever our keys hold, a round has no million shards, and no script runs long.
_MAX_SLOTS = 256
_MAX_SHARDS = 100_000

_SAVE_PLAN = """
local plan, lease, slots = unpack(KEYS)
local token, text, ttl = unpack(ARGV)
if redis.call('GET', lease) ~= token then return 0 end
redis.call('DEL', plan, slots)
redis.call('HSET', plan, 'ticket', token, 'plan', text, 'shards', #ARGV - 3)
for i = 4, #ARGV do redis.call('HSET', plan, 'shard:' .. i - 4, ARGV[i]) end
return redis.call('EXPIRE', plan, ttl)
"""

_DROP_PLAN = """
local token = tonumber(redis.call('HGET', KEYS[1], 'ticket') or '') or 0
if token <= tonumber(ARGV[1]) then redis.call('DEL', KEYS[1]) end
"""

_CLAIM = f"""
local plan, lease, stats, slots = unpack(KEYS)
local token, index, slot, anew, ttl = unpack(ARGV)
if redis.call('HGET', plan, 'ticket') ~= token or is_superseded(lease, stats, token) then return false end
redis.call('SADD', slots, slot)
redis.call('EXPIRE', slots, ttl)
local last = math.min(tonumber(redis.call('HGET', plan, 'shards') or '') or 0, {_MAX_SHARDS}) - 1
if anew == '1' then
  -- A slot runs one task at a time, so its claims without a part are those of a killed process.
  for i = 0, last do
    if redis.call('HGET', plan, 'slot:' .. i) == slot and redis.call('HEXISTS', plan, 'part:' .. i) == 0 then
      redis.call('HDEL', plan, 'slot:' .. i)
    end
  end
end
if redis.call('HSETNX', plan, 'slot:' .. index, slot) == 1 then return {{index, ''}} end
for i = 0, last do
  if redis.call('HSETNX', plan, 'slot:' .. i, slot) == 1 then
    local text = redis.call('HGET', plan, 'shard:' .. i)
    return text and {{i, text}}
  end
end
return false
"""

_STORE_PART = f"""
local plan = KEYS[1]
local token, index, part, is_found = unpack(ARGV)
if redis.call('HGET', plan, 'ticket') ~= token then return 0 end
-- Of two processes that probed the shard, one may have failed.
if is_found ~= '1' then
  redis.call('HSETNX', plan, 'part:' .. index, part)
  return 0
end
redis.call('HSET', plan, 'part:' .. index, part)
if redis.call('HSETNX', plan, 'found:' .. index, 1) == 0 then return 0 end
local count = math.min(tonumber(redis.call('HGET', plan, 'shards') or '') or 0, {_MAX_SHARDS})
if count < 1 then return 0 end -- an earlier version made the plan
for i = 0, count - 1 do
  if redis.call('HEXISTS', plan, 'found:' .. i) == 0 then return 0 end
end
return 1
"""

_LOAD_PART = """
local plan, lease = unpack(KEYS)
local token, field = unpack(ARGV)
if redis.call('HGET', plan, 'ticket') ~= token then return false end
local part = redis.call('HGET', plan, field)
if part then return part end
if redis.call('GET', lease) ~= token then return false end
return ''
"""


def save_plan(token: int, plan: str, shards: Sequence[str] = ()) -> bool:
    """Store the plan of a round until its commit. Return False if the round has lost its lease.

    ``shards`` has each shard as a text of its own, for the processes that claim it.
    """
    return bool(run_script(_SAVE_PLAN, ["plan", "lease", "slots"], token, plan, _TTL, *shards))


def load_plan() -> str:
    """Return the stored plan, or an empty string."""
    with open_cache() as cache:
        return (cache.client.hget(cache.key("plan"), "plan") or b"").decode()


def drop_plan(token: int) -> None:
    """Delete the stored plan, unless it belongs to a later round than the one with this token."""
    run_script(_DROP_PLAN, ["plan"], token)


def claim_shard(token: int, index: int, slot: str, *, anew: bool) -> tuple[int, str] | None:
    """Claim the shard with this index for ``slot``, or else the first free one. Return None without any.

    Return the index, and the text of the shard if it is another one. ``slot`` names a process of a worker;
    each claim makes it known to :func:`count_slots`. With ``anew``, the process has no shard yet: a claim of
    its slot that has no part is the claim of a killed process, so that shard is free.
    """
    keys = ["plan", "lease", "round-stats", "slots"]
    claimed = run_script(_CLAIM, keys, token, index, slot, int(anew), _TTL)
    return (int(claimed[0]), claimed[1].decode()) if claimed else None


def store_part(token: int, index: int, part: str, *, found: bool = True) -> bool:
    """Store the result of a shard, unless the round is over. A failure replaces no result.

    Return True if it was the last result that was missing, and none is a failure.
    """
    return bool(run_script(_STORE_PART, ["plan"], token, index, part, int(found)))


def load_part(token: int, index: int) -> str | None:
    """Return the result of a shard, or an empty string before it has one, or None if the round is over."""
    part = run_script(_LOAD_PART, ["plan", "lease"], token, f"part:{index}")
    return None if part is None else part.decode()


def load_parts(count: int) -> list[str]:
    """Return the stored results of the first ``count`` shards, without those that have none."""
    with open_cache() as cache:
        parts = cache.client.hmget(cache.key("plan"), [f"part:{index}" for index in range(count)])
    return [part.decode() for part in parts if part]


def count_slots() -> int:
    """Return how many processes took part in the last shared round, or 0 if that is unknown."""
    with open_cache() as cache:
        return min(_MAX_SLOTS, int(cache.client.scard(cache.key("slots"))))
