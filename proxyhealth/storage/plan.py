"""The stored plan of the last shared round, for the worker that finishes it. Failures raise StoreError."""

from proxyhealth.storage.client import open_cache, run_script

_TTL = 24 * 3_600  # seconds

_SAVE_PLAN = """
local plan, lease = unpack(KEYS)
local token, text, ttl = unpack(ARGV)
if redis.call('GET', lease) ~= token then return 0 end
redis.call('DEL', plan)
redis.call('HSET', plan, 'ticket', token, 'plan', text)
return redis.call('EXPIRE', plan, ttl)
"""

_DROP_PLAN = """
local token = tonumber(redis.call('HGET', KEYS[1], 'ticket') or '') or 0
if token <= tonumber(ARGV[1]) then redis.call('DEL', KEYS[1]) end
"""


def save_plan(token: int, plan: str) -> bool:
    """Store the plan of a round until its commit. Return False if the round has lost its lease."""
    return bool(run_script(_SAVE_PLAN, ["plan", "lease"], token, plan, _TTL))


def load_plan() -> str:
    """Return the stored plan, or an empty string."""
    with open_cache() as cache:
        return (cache.client.hget(cache.key("plan"), "plan") or b"").decode()


def drop_plan(token: int) -> None:
    """Delete the stored plan, unless it belongs to a later round than the one with this token."""
    run_script(_DROP_PLAN, ["plan"], token)
