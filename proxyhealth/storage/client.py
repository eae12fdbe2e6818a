"""The connection to the Redis cache, and the Lua functions that the scripts share."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from functools import lru_cache
from typing import Any, NamedTuple

import redis
from django.conf import settings
from django.core.cache import caches
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, SentinelConnectionPool

from proxyhealth import isolation
from proxyhealth.conf import conf
from proxyhealth.exceptions import StoreError, StoreRefused
from proxyhealth.texts import without_passwords
from proxyhealth.utils import PerProcess

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

-- A Redis that is full permits this command. After it, it also permits the other writes of the script.
local function permit_writes(stats) redis.call('PERSIST', stats) end

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

_PERMISSIONS = "Give the Redis user the permissions that docs/operations.md lists."

# Remedies, by a part of the text of an error. Before Redis 7, the text of an error in a script is within
# another text.
_REMEDIES = {
    "when used memory": "Redis is full: raise its maxmemory, or make room.",
    "read only replica": "This is a replica: the address in CACHES must lead to the primary.",
    "o permissions": _PERMISSIONS,
    "can't run this command": _PERMISSIONS,  # in a script, with Redis 7
    "unknown command": "Do not rename or disable EVALSHA and SCRIPT: rounds need scripts.",
    "hash to the same slot": (
        "For Redis Cluster, set a KEY_PREFIX with a hash tag in CACHES, such as '{proxyhealth}'."
    ),
}

# The errors of a client in use: those of redis-py, and those of its parser and of Python's resolver.
_FAILURES = (RedisError, RedisClusterException, OSError, ValueError, TypeError, LookupError, AttributeError)

# Options of connections: those that the host may change, and those that it may not. Reading a snapshot of
# megabytes in chunks of 64 KB takes three times as long.
_DEFAULTS = {"socket_timeout": 0.9, "socket_connect_timeout": 0.5, "socket_read_size": 1 << 20}
_FIXED = {"decode_responses": False, "encoding": "utf-8", "encoding_errors": "strict"}


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
    """Open the cache that ``CACHE`` names. Raise ``StoreError`` if it fails, also inside the block.

    In a test that is isolated, raise ``StoreError``, too.
    """
    if isolation.is_isolated():
        raise StoreError(isolation.NO_CACHE)
    cache = _cache()
    try:
        yield cache
    except StoreError:
        raise
    except _FAILURES as error:
        # The server may be the wrong one, such as a demoted primary: the next use asks for its address again.
        with suppress(Exception):
            cache.client.connection_pool.disconnect(inuse_connections=False)
        raise (StoreRefused if isinstance(error, ResponseError) else StoreError)(_message(error)) from error


def require_client() -> None:
    """Raise ``StoreError`` if no client can be made from the cache's settings. Do not connect."""
    _cache()


def _cache() -> Cache:
    try:
        alias = conf.CACHE
        backend = caches[alias]
        source = repr(settings.CACHES[alias])
        return Cache(_clients.value(alias, source), source, backend.make_key)
    except StoreError:
        raise
    except Exception as error:  # backends and the classes in their options raise anything
        # A traceback would repeat the text of the cause.
        cause = error if without_passwords(error) == str(error) else None
        raise StoreError(_message(error)) from cause


def _message(error: Exception) -> str:
    # The text of a KeyError, for example, says nothing without the name of its class.
    unclear = isinstance(error, TypeError | LookupError | AttributeError)
    text = without_passwords(repr(error) if unclear else str(error) or repr(error))
    # redis-py 8 has classes for both, which show only the other address.
    if isinstance(error, redis.exceptions.AskError) or text.startswith(("ASK ", "MOVED ")):
        return f"another node of a Redis Cluster has the keys ({text}). Use a server without cluster mode."
    if isinstance(error, MasterNotFoundError):  # the rest has the settings of all connections
        text = f"{text.partition(' : ')[0]}. A Sentinel must respond, and know a primary that does"
    remedy = next((remedy for part, remedy in _REMEDIES.items() if part in text), "")
    return f"{text.rstrip('.')}. {remedy}" if remedy else text


def _make_client(alias: str, source: str) -> Any:
    """Return a client of redis-py: Django's cache methods pickle values, and have no conditional writes."""
    backend: Any = caches[alias]
    try:
        if hasattr(backend, "client"):  # django-redis
            client = backend.client.get_client(write=True)
        else:
            client = backend._cache.get_client(write=True)
    except AttributeError:
        raise StoreError(f"the cache {alias!r} is not a Redis cache") from None
    except NotImplementedError:
        raise StoreError(f"the cache {alias!r} spreads its keys over several servers") from None
    if not isinstance(client, redis.Redis):
        raise StoreError(f"the cache {alias!r} has a client of another kind: {type(client).__name__}")
    return _with_our_options(client)


# A fork needs a new client: a lock of redis-py's pool makes each use in the child wait for five seconds.
_clients = PerProcess(lambda: lru_cache(maxsize=1)(_make_client))


def _with_our_options(client: Any) -> Any:
    """Return a client of the same server, with short timeouts, one retry, and replies in bytes.

    The cache's own client may wait forever for a server that hangs.
    """
    pool = client.connection_pool
    if not isinstance(pool, redis.ConnectionPool):
        return client
    options = _options(pool.connection_kwargs)
    pool.connection_class(**options)  # raises TypeError for an unknown option, which a pool does only later
    options["connection_class"] = pool.connection_class
    if not isinstance(pool, SentinelConnectionPool):
        return redis.Redis(connection_pool=redis.ConnectionPool(**options))
    del options["connection_pool"]  # the one of the host
    manager = copy(pool.sentinel_manager)
    manager.sentinels = [_sentinel(each, manager.sentinel_kwargs) for each in manager.sentinels]
    new_pool: Any = SentinelConnectionPool  # without types
    return redis.Redis(connection_pool=new_pool(pool.service_name, manager, **options))


def _sentinel(client: Any, configured: Mapping[str, Any]) -> Any:
    address = client.get_connection_kwargs()
    options = {"host": address["host"], "port": address["port"], **_options(configured)}
    return redis.Redis(connection_pool=redis.ConnectionPool(**options))


def _options(configured: Mapping[str, Any]) -> dict[str, Any]:
    # The first use of an old connection fails after a restart of the server. After a failover, the server may
    # continue as a replica that refuses writes. Reconnect, and try once more.
    errors = [redis.ConnectionError, ResponseError]
    retry = Retry(NoBackoff(), 1, supported_errors=tuple(errors))
    configured = {name: value for name, value in configured.items() if value is not None}
    configured.pop("retry_on_timeout", None)  # it would double the timeout
    # Before redis-py 6, pools look at ``retry_on_error``, too.
    return {**_DEFAULTS, **configured, **_FIXED, "retry": retry, "retry_on_error": errors}


def run_script(script: str, keys: Iterable[str], *args: Any) -> Any:
    """Run a Lua script on the keys with these names, and return its reply. Raise ``StoreError``."""
    with open_cache() as cache:
        run = cache.client.register_script(_LUA_FUNCTIONS + script)
        return run([cache.key(key) for key in keys], args)
