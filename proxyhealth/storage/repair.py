"""The repair of our keys in the Redis cache, before each round.

Whatever a bug, another program or an operator left there, the next round must run. The document with the
snapshot is repaired by the commit, except for its type.
"""

import logging

from proxyhealth.storage.client import run_script

logger = logging.getLogger(__name__)

_MAX_LINES = 20  # in the log, per repair

# Every key: its type, and the rule for its contents. A number is the maximum time to live in milliseconds;
# such a key always has one. The last token comes first, because others refer to it. The keys of the recent
# probes are missing, because their own script repairs them.
KEYS: dict[str, tuple[str, str]] = {
    "token": ("string", "integer"),
    "tick": ("string", "integer"),
    "rerun": ("string", "integer"),
    "lease": ("string", "10000"),
    "commit": ("string", "10000"),
    "pending:sent": ("string", "60000"),
    "signals": ("string", "60000"),
    "signals:hanging": ("set", "63072060000"),
    "snapshot": ("string", ""),
    "pending": ("set", ""),
    "plan": ("hash", "plan"),
    "slots": ("set", "86400000"),
    "outbox": ("list", ""),
    "check-failures": ("list", "600000"),
    "recheck": ("string", "31622400000"),
    "round-stats": ("hash", "counters"),
    "tasks": ("hash", "counters"),
    "presence": ("hash", "604800000"),
    "rounds-log": ("list", "604800000"),
}

# Other fields of a hash may belong to a newer version, and stay. Lua counts exactly up to 2^53, and scripts
# add to the numbers between two repairs.
_REPAIR = """
local removed = {}
local function is_integer(text)
  if not text or #text > 16 then return false end
  return (text == '0' or string.find(text, '^[1-9]%d*$')) and tonumber(text) < 2^52
end
local time = redis.call('TIME')
local last_token = time[1] * 1000000 + time[2]
local function is_token(text) return is_integer(text) and tonumber(text) <= last_token end

local function fault_of(key, kind, rule)
  local found = redis.call('TYPE', key).ok
  if found ~= kind then return 'has the type ' .. found end
  if rule == 'integer' and not is_integer(redis.call('GET', key)) then return 'is not an integer' end
  if rule == 'plan' and not is_token(redis.call('HGET', key, 'ticket')) then return 'has no valid token' end
  local longest, left = tonumber(rule), redis.call('PTTL', key)
  if longest and left < 0 then return 'never expires' end
  if longest and left > longest then return 'expires too late' end
end

local token_fields = {committed = true, closed = true, full = true, offline_since = true}
local counters = {'^count:', '^outbox$', ':success$', ':failure$', ':microseconds$'}
local function repair_counters(key, number)
  local fields = redis.call('HGETALL', key)
  for f = 1, #fields, 2 do
    local name, value = fields[f], fields[f + 1]
    local valid = not token_fields[name] or is_token(value)
    for _, pattern in ipairs(counters) do
      if string.find(name, pattern) then valid = valid and is_integer(value) end
    end
    local fault = 'is not a valid number'
    if name == 'deployment' and not string.find(value, '^[%d-]+T[%d:.]+Z$') then
      valid, fault = false, 'is not a time'
    end
    if not valid then
      redis.call('HDEL', key, name)
      table.insert(removed, {number, name, fault})
    end
  end
end

for number, key in ipairs(KEYS) do
  local kind, rule = ARGV[2 * number - 1], ARGV[2 * number]
  if redis.call('EXISTS', key) == 1 then
    local fault = fault_of(key, kind, rule)
    if fault then
      redis.call('DEL', key)
      table.insert(removed, {number, '', fault})
    elseif rule == 'counters' then
      repair_counters(key, number)
    elseif number == 1 then
      last_token = math.max(last_token, tonumber(redis.call('GET', key)))
    end
  end
end
return removed
"""


def repair() -> None:
    """Remove the keys and fields that would make rounds fail, and log them. Raise ``StoreError``."""
    rules = [text for kind_and_rule in KEYS.values() for text in kind_and_rule]
    names = list(KEYS)
    removed = run_script(_REPAIR, names, *rules)
    for number, field, fault in removed[:_MAX_LINES]:
        place = f"{names[number - 1]} {field[:60].decode(errors='replace')}".rstrip()
        logger.error("cache repaired: removed %r, because it %s", place, fault.decode())
    if len(removed) > _MAX_LINES:
        logger.error("cache repaired: removed %d more keys and fields", len(removed) - _MAX_LINES)
