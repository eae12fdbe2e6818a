"""The traces: the course of the last probe of each proxy, in the Redis cache.

Each proxy has a key of its own, which expires. Its value is the token of the probe, a space, and the trace as
JSON. The newest token wins, so a slow round does not replace the trace of a later check.
"""

import logging
from collections.abc import Iterable
from uuid import UUID

from redis.exceptions import ResponseError

from proxyhealth.snapshot import ProxyStatus
from proxyhealth.storage.client import open_cache, run_script
from proxyhealth.storage.document import DAMAGE
from proxyhealth.trace import ProbeTrace, encode

logger = logging.getLogger(__name__)

_LIFETIME = 24 * 3_600  # seconds
_MAX_BYTES = 16 * 1024  # of a value; the texts in it are shorter
_BATCH = 500  # proxies per script, so that Redis is never blocked for long

# A token that Redis has not reached yet is damaged, and would win against all later ones. A client that lost
# the reply runs the script again, which then writes the same.
_STORE = """
local token, now = tonumber(ARGV[1]), redis.call('TIME')
now = math.max(token, now[1] * 1000000 + now[2])
for place, key in ipairs(KEYS) do
  local begin = redis.pcall('GETRANGE', key, 0, 19)
  local last = type(begin) == 'string' and tonumber(string.match(begin, '^(%d+) ')) or 0
  if last <= token or last > now then
    redis.call('SET', key, ARGV[1] .. ' ' .. ARGV[place + 2], 'EX', ARGV[2])
  end
end
"""


def add_traces(statuses: Iterable[ProxyStatus], token: int) -> None:
    """Store the course of each status that has one, of the probes with ``token``. Raise ``StoreError``."""
    traced = [(_name(status.proxy.id), encode(status.course)) for status in statuses if status.course]
    for begin in range(0, len(traced), _BATCH):
        names, traces = zip(*traced[begin : begin + _BATCH], strict=True)
        run_script(_STORE, names, token, _LIFETIME, *traces)


def read_trace(id: UUID) -> ProbeTrace | None:
    """Return the trace of the last probe of a proxy, or None if it has none. Raise ``StoreError``.

    A damaged value counts as none.
    """
    with open_cache() as cache:
        try:
            value = cache.client.getrange(cache.key(_name(id)), 0, _MAX_BYTES)
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            value = b""
    try:
        return ProbeTrace.from_json(value.partition(b" ")[2]) if value else None
    except DAMAGE as error:
        logger.debug("the trace of proxy %s is damaged: %r", id, error)
        return None


def _name(id: UUID) -> str:
    return f"trace:{id}"
