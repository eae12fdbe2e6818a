"""The recent probes: what every probe of the last 24 hours found, in the Redis cache.

There is one hash per hour, which expires by itself. Its fields are the ids of the proxies, as 16 bytes, and
its values the samples of the hour, as ``_SAMPLE`` packs them.
"""

import logging
import struct
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import NamedTuple
from uuid import UUID

from redis.exceptions import RedisError

from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage.client import open_cache, run_script

logger = logging.getLogger(__name__)

PERIOD = timedelta(hours=24)

_LIFETIME = 24 * 3_600 + 600  # seconds after its last sample at which a hash expires

_BATCH = 1_000  # proxies per script, so that Redis is never blocked for long

# The second of the hour, the code, and the latency in milliseconds.
_SAMPLE = struct.Struct(">HBH")
_RECORD = 16 + _SAMPLE.size
_NO_LATENCY = 0xFFFF

# The code of a sample is 32 times the place of its status, plus the place of its reason. Samples outlive an
# upgrade, so only append: up to 8 statuses and 32 reasons.
_STATUSES = (Status.UNKNOWN, Status.OK, Status.UNHEALTHY, Status.UNREACHABLE, Status.UNREGISTERED)
_REASONS = (
    Reason.NONE,
    Reason.INVALID_URL,
    Reason.BLOCKED,
    Reason.DNS,
    Reason.CONNECT,
    Reason.TLS,
    Reason.TIMEOUT,
    Reason.PROTOCOL,
    Reason.STATUS_CODE,
    Reason.TRUNCATED,
    Reason.TOO_LARGE,
    Reason.NOT_JSON,
    Reason.BAD_REPORT,
    Reason.REPORT_ERRORS,
    Reason.INTERNAL,
)
# The values of a newer version are unknown.
_STATUS_AT = (*_STATUSES, *[Status.UNKNOWN] * (8 - len(_STATUSES)))
_REASON_AT = (*_REASONS, *[Reason.NONE] * (32 - len(_REASONS)))
_STATUS_PLACES = {status: place for place, status in enumerate(_STATUSES)}
_REASON_PLACES = {reason: place for place, reason in enumerate(_REASONS)}

# The memory must not depend on INTERVAL, nor on how often a proxy is saved or flaps. So a proxy has a limit
# of samples at each second of the hour: 12, and one per 40 s, or per 10 s for another result than the last.
# A client that lost the reply runs the script again, which then adds nothing.
_ADD = f"""
local key, records, lifetime = KEYS[1], ARGV[1], ARGV[2]
local kind = redis.call('TYPE', key).ok
if kind == 'hash' or kind == 'none' then kind = '' else redis.call('DEL', key) end

local function second(value, place)
  local high, low = string.byte(value, place, place + 1)
  return high * 256 + low
end
local function limit(now, seconds) return {_SAMPLE.size} * (12 + now / seconds) end
local function is_new(value, sample)
  local size, now = #value, second(sample, 1)
  local same = size > 0 and string.byte(value, size - 2) == string.byte(sample, 3)
  if same and math.abs(now - second(value, size - 4)) < 5 then return false end
  return size < limit(now, same and 40 or 10)
end

local ids, fields = {{}}, {{}}
for i = 1, #records, {_RECORD} do table.insert(ids, string.sub(records, i, i + 15)) end
local values = redis.call('HMGET', key, unpack(ids))
for number, id in ipairs(ids) do
  local value = values[number] or ''
  if #value % {_SAMPLE.size} ~= 0 or #value > limit(3600, 10) then value = '' end -- damaged
  local sample = string.sub(records, {_RECORD} * number - 4, {_RECORD} * number)
  if is_new(value, sample) then
    table.insert(fields, id)
    table.insert(fields, value .. sample)
  end
end
if #fields > 0 then
  redis.call('HSET', key, unpack(fields))
  redis.call('EXPIRE', key, lifetime)
end
return kind
"""


class RecentProbe(NamedTuple):
    """The result of one probe. ``latency`` is in seconds, or None without a response."""

    at: datetime
    status: Status
    reason: Reason
    latency: float | None


def add_probes(statuses: Iterable[ProxyStatus]) -> None:
    """Store the last probe of each status. Raise ``StoreError``; it is then safe to repeat it."""
    hours: dict[int, list[bytes]] = defaultdict(list)
    for status in statuses:
        last = status.last
        if last.checked_at is None:
            continue
        hour, second = divmod(int(last.checked_at.timestamp()), 3_600)
        code = 32 * _STATUS_PLACES[last.status] + _REASON_PLACES[last.reason]
        latency = _NO_LATENCY if last.latency is None else min(round(1_000 * last.latency), _NO_LATENCY - 1)
        hours[hour].append(last.proxy.id.bytes + _SAMPLE.pack(second, code, latency))
    for hour, records in hours.items():
        for begin in range(0, len(records), _BATCH):
            append(hour, b"".join(records[begin : begin + _BATCH]))


def append(hour: int, records: bytes) -> None:
    """Append one sample per proxy to those of the hour. Each record is an id and a sample."""
    if kind := run_script(_ADD, [_name(hour)], records, _LIFETIME):
        logger.error("cache repaired: removed %r, because it has the type %s", _name(hour), kind.decode())


def _name(hour: int) -> str:
    return f"recent:{hour}"


def read_probes(ids: Iterable[UUID], since: datetime | None = None) -> Mapping[UUID, Sequence[RecentProbe]]:
    """Return the probes of each proxy since then, or in the last 24 hours. Raise ``StoreError``.

    The oldest come first. Damaged values are omitted. A probe of a newer version may have the status
    ``unknown``, or no reason.
    """
    now = datetime.now(UTC)
    begin = since or now - PERIOD
    first, last = (int(moment.timestamp()) // 3_600 for moment in (begin, now))
    probes: dict[UUID, list[RecentProbe]] = {id: [] for id in ids}
    for hour, values in _read(range(first, last + 2), list(probes)):  # the clock of a worker may be ahead
        for found, value in zip(probes.values(), values, strict=True):
            found += _decode(hour, value or b"")
    return {id: _since(begin, found) for id, found in probes.items()}


def _since(begin: datetime, probes: list[RecentProbe]) -> list[RecentProbe]:
    return probes[bisect_left(probes, begin, key=attrgetter("at")) :]


def _read(hours: Sequence[int], ids: Sequence[UUID]) -> Iterable[tuple[int, list[bytes | None]]]:
    if not ids:
        return []
    fields = [id.bytes for id in ids]
    with open_cache() as cache:
        pipe = cache.client.pipeline(transaction=False)
        for hour in hours:
            pipe.hmget(cache.key(_name(hour)), fields)
        replies = pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, RedisError) and not str(reply).startswith("WRONGTYPE"):
                raise reply
    return [
        (hour, reply) for hour, reply in zip(hours, replies, strict=True) if not isinstance(reply, RedisError)
    ]


def _decode(hour: int, value: bytes) -> list[RecentProbe]:
    """Return the probes of a value in order. A damaged value has none."""
    if len(value) % _SAMPLE.size:
        return []
    begin, at = 3_600 * hour, datetime.fromtimestamp
    # Two commits may have stored theirs in another order, or one of them twice.
    samples = sorted(set(_SAMPLE.iter_unpack(value)))
    return [
        RecentProbe(
            at(begin + second, UTC),
            _STATUS_AT[code // 32],
            _REASON_AT[code % 32],
            None if latency == _NO_LATENCY else latency / 1_000,
        )
        for second, code, latency in samples
        if second < 3_600
    ]
