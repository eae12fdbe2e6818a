"""The last signs of life of the prober's processes, in the Redis cache: workers, beat, ticks, and heartbeats.

Each value begins with its time by the clock of Redis, because the clocks of the hosts differ.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from proxyhealth.storage.client import open_cache, run_script
from proxyhealth.texts import clean

PERIOD = 3.0  # seconds between two signs of a worker
GONE_AFTER = 3 * PERIOD  # seconds without a sign after which a worker does not run any more

LIFETIME = 7 * 24 * 3_600  # seconds for which the last signs are kept
_FORGET_AFTER = 600  # seconds after which others make a process forgotten, unless it is the last of its kind

_MAX_TEXT = 300  # characters

# Without a permission that earlier versions do not need.
_NOTE = """
local key = KEYS[1]
local lifetime, field, text, failing, oldest = unpack(ARGV)
local kind = redis.call('TYPE', key).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', key) end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000000 + time[2])
redis.call('HSET', key, field, now .. ' ' .. text)
local begun = tonumber(redis.call('HGET', key, 'begun') or '')
if not begun or begun > tonumber(now) then redis.call('HSET', key, 'begun', now) end
-- The time since which something fails is that of its first failure.
if failing == '1' then redis.call('HSETNX', key, 'since:' .. field, now) end
if failing == '0' then redis.call('HDEL', key, 'since:' .. field) end
redis.call('EXPIRE', key, lifetime)
if oldest == '' then return end
-- Forget the processes that ended long ago, except for the last of each kind.
local limit = tonumber(now) - oldest * 1000000
local fields, last = redis.call('HGETALL', key), {}
for i = 1, #fields, 2 do
  local kind = string.match(fields[i], '^(%l+):')
  local at = tonumber(string.match(fields[i + 1], '^(%d+) ') or '') or 0
  if kind and at > (last[kind] or -1) then last[kind] = at end
end
for i = 1, #fields, 2 do
  local kind = string.match(fields[i], '^(%l+):')
  local at = tonumber(string.match(fields[i + 1], '^(%d+) ') or '') or 0
  local is_old = (kind == 'worker' or kind == 'beat') and at < limit and at < last[kind]
  if is_old or kind == 'heartbeat' and at < limit - 86400 * 1000000 then
    redis.call('HDEL', key, fields[i], 'since:' .. fields[i])
  end
end
"""


class Sign(NamedTuple):
    """The last sign of life of one process, or of one thing that it does. ``age`` is in seconds."""

    at: datetime
    age: float
    values: Mapping[str, Any]
    since: datetime | None = None  # of the failures that still go on

    def text(self, name: str) -> str:
        """Return a value as text that can be shown."""
        value = self.values.get(name)
        return clean(value, _MAX_TEXT) if isinstance(value, str) else ""

    def count(self, name: str) -> int:
        value = self.values.get(name)
        return value if type(value) is int and 0 <= value < 1 << 53 else 0

    def items(self, name: str) -> list[Any]:
        value = self.values.get(name)
        return value[:1_000] if isinstance(value, list) else []


class Presence(NamedTuple):
    """The last signs of life, the latest first. ``begun`` is the time since which there have been any.

    ``settled_for`` are the seconds since this process last saw that the cache takes no signs. Before, nobody
    could give one, so an old sign says nothing.
    """

    workers: Sequence[Sign] = ()
    beats: Sequence[Sign] = ()
    tick: Sign | None = None  # that a worker has taken
    heartbeats: Mapping[str, Sign] = {}
    begun: Sign | None = None
    settled_for: float = math.inf

    @property
    def running(self) -> list[Sign]:
        """The workers that run."""
        return [sign for sign in self.workers if sign.age < GONE_AFTER and not sign.values.get("stopped")]


def note_worker(id: str, values: Mapping[str, Any]) -> None:
    """Store that a worker runs, and what it says of itself. Raise ``StoreError``."""
    _note(f"worker:{id}", values)


def note_beat(id: str, values: Mapping[str, Any]) -> None:
    """Store that beat runs. An ``error`` in ``values`` is the reason why it could not send its tick.

    Raise ``StoreError``.
    """
    _note(f"beat:{id}", values, failing="error" in values)


def note_tick(interval: float) -> None:
    """Store that a worker has taken a tick, and forget the processes that ended long ago.

    ``interval`` is that of beat in seconds. Raise ``StoreError``.
    """
    _note("tick", {"interval": interval}, oldest=_FORGET_AFTER)


def note_heartbeat(id: str, error: str) -> None:
    """Store the result of a heartbeat. Raise ``StoreError``."""
    _note(f"heartbeat:{id}", {"error": error} if error else {}, failing=bool(error))


def _note(
    field: str, values: Mapping[str, Any], *, failing: bool | None = None, oldest: int | None = None
) -> None:
    flag = "" if failing is None else int(failing)
    limit = "" if oldest is None else oldest
    run_script(_NOTE, ["presence"], LIFETIME, field, json.dumps(dict(values)), flag, limit)


def read() -> Presence:
    """Read the last signs of life. Omit damaged ones. Raise ``StoreError``."""
    with open_cache() as cache:
        pipe = cache.client.pipeline(transaction=False)
        pipe.hgetall(cache.key("presence"))
        pipe.time()
        fields, (seconds, microseconds) = pipe.execute(raise_on_error=False)
        if isinstance(fields, Exception):
            fields = {}  # another type, which the next sign replaces
    signs = dict(_signs(fields, seconds * 1_000_000 + microseconds))
    return Presence(
        _of_kind(signs, "worker:"),
        _of_kind(signs, "beat:"),
        signs.get("tick"),
        {
            name.removeprefix("heartbeat:"): sign
            for name, sign in signs.items()
            if name.startswith("heartbeat:")
        },
        signs.get("begun"),
    )


def _of_kind(signs: Mapping[str, Sign], prefix: str) -> list[Sign]:
    chosen = [sign for name, sign in signs.items() if name.startswith(prefix)]
    return sorted(chosen, key=lambda sign: sign.at, reverse=True)


def _signs(fields: Mapping[bytes, bytes], now: int) -> Iterator[tuple[str, Sign]]:
    for name, value in fields.items():
        stamp, _, text = value.partition(b" ")
        with suppress(ValueError, RecursionError):
            at, values = _time(stamp, now), json.loads(text) if text else {}
            if at and isinstance(values, dict):
                since = _time(fields.get(b"since:" + name, b""), now)
                yield name.decode(), Sign(at, max(0.0, (now - int(stamp)) / 1e6), values, since)


def _time(stamp: bytes, now: int) -> datetime | None:
    """Return a time, or None for none, and for one to come: from before the clock of Redis was set back."""
    if not 0 < len(stamp) <= 16 or not stamp.isdigit() or int(stamp) > now + 1_000_000:
        return None
    return datetime.fromtimestamp(int(stamp) / 1e6, UTC)
