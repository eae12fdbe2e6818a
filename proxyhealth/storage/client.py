"""The Redis cache that the snapshot is in, as a client that neither waits nor retries for long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


class Cache(NamedTuple):
    """An open cache; ``source`` is another one if it is another cache."""

    client: Any  # redis.Redis; its stubs know its pipelines and scripts only in part
    source: str
    make_key: Callable[[str], str]

    def key(self, name: str) -> str:
        """The key of ``name``, with the prefix and the version that the host gave its cache."""
        return self.make_key(f"proxyhealth:{name}")


_clients: dict[str, Any] = {}


@contextmanager
def open_cache() -> Iterator[Cache]:
    """The cache named by ``CACHE``; raises ``StoreError`` for whatever goes wrong with it inside."""
    try:
        backend = caches[conf.CACHE]
        source = repr(settings.CACHES[conf.CACHE])
        if source not in _clients:
            _clients.clear()
            _clients[source] = _bounded_client(backend)
        yield Cache(_clients[source], source, backend.make_key)
    except (RedisError, OSError, InvalidCacheBackendError) as error:
        raise StoreError(f"{error}") from error


def _bounded_client(backend: Any) -> Any:
    """A client like the cache's own, but one that neither waits nor retries for long.

    Django's values are pickles, and it knows no conditional writes; so the client beneath it is
    used. By default that one waits without end for a server that says nothing.
    """
    try:
        if hasattr(backend, "client"):  # django-redis
            client = backend.client.get_client(write=True)
        else:
            client = backend._cache.get_client(write=True)
    except AttributeError:
        raise StoreError(f"the cache {conf.CACHE!r} is not a Redis cache") from None
    pool = client.connection_pool
    if not isinstance(pool, redis.ConnectionPool) or isinstance(pool, SentinelConnectionPool):
        return client  # it finds its servers in a way of its own; its timeouts are the host's
    chosen = {name: value for name, value in pool.connection_kwargs.items() if value is not None}
    # A snapshot of megabytes comes in a third of the time if it is not read by the 64 KB.
    defaults = {"socket_timeout": 1.0, "socket_connect_timeout": 0.5, "socket_read_size": 1 << 20}
    options = {**defaults, **chosen}
    # One more try at once serves the connection that a restart of the server has left behind.
    options["retry"] = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
    return redis.Redis(
        connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **options)
    )


def run_script(script: str, keys: Iterable[str], *args: Any) -> Any:
    """Run a Lua ``script`` on the keys of these names, and return its answer; raises ``StoreError``."""
    with open_cache() as cache:
        return cache.client.register_script(script)([cache.key(key) for key in keys], args)
