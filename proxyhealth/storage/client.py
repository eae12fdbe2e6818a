"""The connection to the Redis cache, and the Lua functions that the scripts share."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import redis
from django.conf import settings
from django.core.cache import InvalidCacheBackendError, caches
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from proxyhealth.conf import conf
from proxyhealth.exceptions import StoreError

# Every script can call these functions.
_LUA_FUNCTIONS = """
-- The time of Redis in microseconds, but always higher than the last token: its clock may step back.
local function take_token(key)
  local time = redis.call('TIME')
  local token = time[1] * 1000000 + time[2]
  local last = redis.pcall('GET', key)
  last = type(last) == 'string' and tonumber(last) or 0
  if last >= 2^53 or last ~= last then last = 0 end -- an invalid one; Lua counts exactly up to 2^53
  if token <= last then token = last + 1 end
  token = string.format('%.0f', token) -- Lua itself prints only 14 digits
  redis.call('SET', key, token)
  return token
end

-- Closing a round closes all earlier rounds, too.
local function is_closed(stats, token)
  return tonumber(redis.call('HGET', stats, 'closed') or '0') >= tonumber(token)
end

-- A round may continue after its lease expires, until another round takes the lease.
local function is_superseded(lease, stats, token)
  local holder = redis.call('GET', lease)
  return holder and holder ~= token or is_closed(stats, token)
end
"""


class Cache(NamedTuple):
    """An open cache. ``source`` identifies its configuration."""

    client: Any  # redis.Redis, whose stubs lack parts of pipelines and scripts
    source: str
    make_key: Callable[[str], str]

    def key(self, name: str) -> str:
        """Return the key of ``name``, with the prefix and the version of the host's cache."""
        return self.make_key(f"proxyhealth:{name}")


@contextmanager
def open_cache() -> Iterator[Cache]:
    """Open the cache that ``CACHE`` names. Raise ``StoreError`` if it fails, also inside the block."""
    try:
        alias = conf.CACHE
        backend = caches[alias]
        source = repr(settings.CACHES[alias])
        yield Cache(_client(alias, source), source, backend.make_key)
    except (RedisError, OSError, InvalidCacheBackendError) as error:
        raise StoreError(f"{error}") from error


@lru_cache(maxsize=1)
def _client(alias: str, source: str) -> Any:
    """Return a client with the connection settings of the cache, but with short timeouts and one retry.

    The cache's own client may wait forever for a server that hangs, and Django's cache methods pickle values
    and have no conditional writes. A fork needs no new client, because redis-py's pools detect it.
    """
    backend: Any = caches[alias]
    try:
        if hasattr(backend, "client"):  # django-redis
            client = backend.client.get_client(write=True)
        else:
            client = backend._cache.get_client(write=True)
    except AttributeError:
        raise StoreError(f"the cache {alias!r} is not a Redis cache") from None
    pool = client.connection_pool
    if not isinstance(pool, redis.ConnectionPool) or isinstance(pool, SentinelConnectionPool):
        return client  # Sentinel and cluster clients keep the host's timeouts: they choose their servers
    configured = {name: value for name, value in pool.connection_kwargs.items() if value is not None}
    # Reading a snapshot of megabytes in chunks of 64 KB takes three times as long.
    defaults = {"socket_timeout": 1.0, "socket_connect_timeout": 0.5, "socket_read_size": 1 << 20}
    options = {**defaults, **configured}
    # After a restart of the server, the first use of an old connection fails.
    options["retry"] = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
    return redis.Redis(
        connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **options)
    )


def run_script(script: str, keys: Iterable[str], *args: Any) -> Any:
    """Run a Lua script on the keys with these names, and return its reply. Raise ``StoreError``."""
    with open_cache() as cache:
        run = cache.client.register_script(_LUA_FUNCTIONS + script)
        return run([cache.key(key) for key in keys], args)
