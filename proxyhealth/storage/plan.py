"""Who may do what, over all processes of a deployment: tokens, the lease of the round, what is asked for.

All of it is in the Redis cache, each decision is one script there, and the time is that of the cache: the
clocks of workers differ, and step back.
"""

from __future__ import annotations

from proxyhealth.storage.client import open_cache, run_script

_KEPT_FOR = 24 * 3_600


# KEYS: plan, lease. ARGV: token, plan, how long it is kept (s)
_SAVE_PLAN = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'ticket', ARGV[1], 'plan', ARGV[2])
return redis.call('EXPIRE', KEYS[1], ARGV[3])
"""

# KEYS: plan. ARGV: token
_DROP_PLAN = """
if redis.call('HGET', KEYS[1], 'ticket') == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


# Rounds: one at a time, counted


def save_plan(token: int, plan: str) -> bool:
    """Keep the plan of a round that is run by many tasks, until it is committed; False if it has no lease."""
    return bool(run_script(_SAVE_PLAN, ["plan", "lease"], token, plan, _KEPT_FOR))


def load_plan() -> str:
    """The plan that is kept, or an empty string."""
    with open_cache() as cache:
        return (cache.client.hget(cache.key("plan"), "plan") or b"").decode()


def drop_plan(token: int) -> None:
    """Forget the plan of this round, if it is the one that is kept."""
    run_script(_DROP_PLAN, ["plan"], token)


# Checks of a few: many requests, one task
