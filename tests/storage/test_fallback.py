"""The last confirmed statuses from the database, while the cache cannot be read and there is no copy."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings as django_settings
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created

from proxyhealth import health, isolation
from proxyhealth.models import Watch, WorkspaceProxy
from proxyhealth.report import HealthReport
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import fallback, reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.settings import REDIS_PORT
from tests.support.confirmed import BOTH, CONFIRMED, EARLIER, LAST_ROUND, add_fleet, statuses_of
from tests.support.machine import at_most
from tests.support.ports import free_port
from tests.support.proxies import wait_for
from tests.support.redis_relay import RedisRelay
from tests.support.servers import Server
from tests.support.values import a_round, make_status

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def fleet(sent):
    return add_fleet()


@pytest.fixture
def unreachable(settings, monkeypatch):
    """A port that refuses connections is the cache. Each read tries it again."""
    cache = {**django_settings.CACHES["default"], "LOCATION": f"redis://127.0.0.1:{free_port()}/0"}
    settings.CACHES = {"default": cache}
    monkeypatch.setattr(reader, "_RETRY_INTERVAL", 0)
    monkeypatch.setattr(fallback, "_PAUSE", 0)
    monkeypatch.setattr(fallback, "_SHARE", 0)


@pytest.fixture
def queries():
    """The queries on connections that are made from now on, as by new threads."""
    found = []

    def note(execute, sql, *args):
        found.append(sql)
        return execute(sql, *args)

    def watch(connection, **kwargs):
        connection.execute_wrappers.append(note)

    connection_created.connect(watch)
    yield found
    connection_created.disconnect(watch)


@pytest.fixture
def relay(settings, redis_client):
    relay = RedisRelay(REDIS_PORT)
    with relay.running() as url:
        settings.CACHES = {
            "default": {
                **django_settings.CACHES["default"],
                "LOCATION": url,
                "OPTIONS": {"socket_timeout": 0.2},
            }
        }
        yield relay


# The cache is out of reach


def test_read__cache_down_gives_the_confirmed_statuses(stopped, fleet, caplog):
    stopped()
    with at_most(1):
        snapshot = reader.read()
    assert list(statuses_of(snapshot).items()) == list(BOTH.items()), "sorted by name"
    assert snapshot.stale_reason.startswith("The cache cannot be read (")
    assert snapshot.stale_reason.endswith(f"). {CONFIRMED}")
    assert f"snapshot stale: {snapshot.stale_reason}" in caplog.text
    oslo = snapshot.statuses[fleet["Oslo"].pk]
    assert (oslo.proxy, oslo.proxy_host) == (fleet["Oslo"].as_proxy(), "oslo.example.com")
    assert (oslo.reason, oslo.report) == (Reason.REPORT_ERRORS, HealthReport(("kaputt",), ("warm",)))
    assert (oslo.since, oslo.checked_at, oslo.raw) == (EARLIER, LAST_ROUND, None)
    assert (snapshot.checked_at, snapshot.stale_at) == (LAST_ROUND, LAST_ROUND + timedelta(minutes=3))
    assert snapshot.age == pytest.approx((datetime.now(UTC) - LAST_ROUND).total_seconds(), abs=2)
    assert health.proxy_hosts() == ["oslo.example.com", "paris.example.com"]
    assert health.proxy_hosts(healthy_only=True) == ["paris.example.com"]


def test_read__cache_hangs_gives_the_confirmed_statuses(relay, fleet):
    relay.delivers.clear()
    with at_most(1):
        snapshot = reader.read()
    assert statuses_of(snapshot) == BOTH
    assert snapshot.stale_reason.endswith(CONFIRMED)


def test_read__other_threads_do_not_wait_for_a_hanging_cache(relay, fleet, monkeypatch):
    monkeypatch.setattr(reader, "_RETRY_INTERVAL", 0)
    relay.delivers.clear()
    reader.read()
    thread = threading.Thread(target=reader.read)
    thread.start()
    wait_for(lambda: reader._reader.value._refreshing_since, 5)
    with at_most(0.15):
        assert statuses_of(reader.read()) == BOTH
    relay.delivers.set()
    thread.join(10)


def test_read__cache_refuses_gives_the_confirmed_statuses(relay, fleet):
    relay.refuse(b"proxyhealth", b"-NOPERM no permissions\r\n")
    snapshot = reader.read()
    assert statuses_of(snapshot) == BOTH
    assert "Give the Redis user the permissions" in snapshot.stale_reason
    assert snapshot.stale_reason.endswith(CONFIRMED)


def test_read__damaged_document_gives_the_confirmed_statuses(fleet, redis_client, snapshot_key):
    redis_client.set(snapshot_key, b'{"format": 99}')
    snapshot = reader.read()
    assert statuses_of(snapshot) == BOTH
    assert snapshot.stale_reason.endswith(f"it is of another format). {CONFIRMED}")


def test_read__foreign_document_gives_our_statuses(fleet, redis_client, monkeypatch):
    monkeypatch.setattr("proxyhealth.storage.commit.read_identity", lambda: "2025-01-01T00:00:00.000000Z")
    commit([make_status(fleet["paris"].as_proxy(), Status.UNREACHABLE)], take_token(), full_round=a_round())
    snapshot = reader.read()
    assert statuses_of(snapshot) == BOTH
    assert "it belongs to another deployment" in snapshot.stale_reason
    assert snapshot.stale_reason.endswith(CONFIRMED)


def test_read__cache_answers_again(stopped, fleet, valkey, monkeypatch):
    monkeypatch.setattr(reader, "_RETRY_INTERVAL", 0.05)
    stopped()
    assert statuses_of(reader.read()) == BOTH
    valkey.start()
    wait_for(lambda: reader.read().stale_reason == f"The cache has lost the snapshot. {CONFIRMED}", 5)
    paris = fleet["paris"].as_proxy()
    commit([make_status(paris, Status.UNREACHABLE)], take_token(), full_round=a_round())
    wait_for(lambda: not reader.read().stale, 5)
    assert statuses_of(reader.read()) == {"paris": "unreachable"}
    stopped()
    snapshot = reader.read()
    assert statuses_of(snapshot) == {"paris": "unreachable"}, "a copy precedes the database"
    assert snapshot.stale_reason.endswith("This is the last snapshot that was read.")


# The cache responds, but is empty


def test_read__empty_cache_gives_the_confirmed_statuses(fleet, redis_client):
    snapshot = reader.read()
    assert statuses_of(snapshot) == BOTH
    assert snapshot.stale_reason == f"The cache has lost the snapshot. {CONFIRMED}"
    assert reader.read() is snapshot, "what readers have made of it stays valid"


def test_read__check_in_an_empty_cache_precedes_the_database(fleet, redis_client):
    for first in (True, False):  # a process that saw the empty cache, and one that did not
        if first:
            reader.read()
        else:
            reader.forget()
        commit([make_status(fleet["paris"].as_proxy(), Status.UNREACHABLE)], take_token())
        snapshot = reader.read()
        assert statuses_of(snapshot) == {"Oslo": "unhealthy", "paris": "unreachable"}
        assert snapshot.stale_reason == f"The cache has lost the snapshot. {CONFIRMED}"
        assert reader.read() is snapshot


def test_read__before_the_first_round_there_is_nothing(fleet, redis_client):
    Watch.objects.all().delete()
    commit([make_status(fleet["paris"].as_proxy())], take_token())
    snapshot = reader.read()
    assert statuses_of(snapshot) == {"paris": "ok"}
    assert snapshot.stale_reason.startswith("No round has ended yet.")


def test_scrape__has_only_what_the_cache_holds(fleet, redis_client):
    assert statuses_of(reader.read()) == BOTH
    activity = reader.read_activity()
    assert (activity.snapshot.statuses, activity.snapshot.fault) == ({}, "")


# The query


def test_fallback__one_query_per_pause(unreachable, fleet, queries, monkeypatch):
    monkeypatch.setattr(fallback, "_PAUSE", 60)
    for _ in range(20):
        first = reader.read()
    assert len(queries) == 1
    monkeypatch.setattr(fallback, "_PAUSE", 0)
    assert reader.read() is first, "the same object, if the rows are the same"
    assert len(queries) == 2
    WorkspaceProxy.objects.filter(name="paris").update(name="lyon")
    assert "lyon" in statuses_of(reader.read())


def test_fallback__a_process_with_a_copy_makes_no_query(fleet, redis_client, snapshot_key, queries):
    commit([make_status(fleet["paris"].as_proxy())], take_token(), full_round=a_round())
    reader.read()
    queries.clear()
    redis_client.set(snapshot_key, b'{"format": 99}')
    snapshot = reader.read()
    assert (statuses_of(snapshot), snapshot.stale) == ({"paris": "ok"}, True)
    assert queries == []


def test_fallback__isolated_tests_make_no_query(fleet, queries, monkeypatch):
    monkeypatch.setattr(isolation, "_entered", ())
    assert isolation.NO_CACHE in reader.read().stale_reason
    assert queries == []


def test_fallback__leaves_the_transaction_of_the_caller(unreachable, fleet, django_assert_num_queries):
    with transaction.atomic(), django_assert_num_queries(0):
        assert statuses_of(reader.read()) == BOTH
        assert not connection.needs_rollback


def test_fallback__event_loop_goes_on(relay, fleet):
    relay.delivers.clear()

    async def main():
        reading = asyncio.create_task(reader.aread())
        turns = 0
        while not reading.done():
            await asyncio.sleep(0.01)
            turns += 1
        return await reading, turns

    snapshot, turns = async_to_sync(main)()
    assert statuses_of(snapshot) == BOTH
    assert turns > 3


@pytest.fixture
def hanging(monkeypatch):
    """A real client of PostgreSQL, whose server accepts the connection and says nothing."""
    monkeypatch.setattr(fallback, "_TIMEOUT", 0.1)
    with Server(lambda sock: (sock.recv(1), sock.recv(1 << 16), sock.recv(1)), read=False) as server:
        elsewhere = {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": "127.0.0.1",
            "PORT": server.port,
            "OPTIONS": {"connect_timeout": 30, "sslmode": "disable"},
        }
        # For new threads: this one has its connection already.
        monkeypatch.setitem(connections.settings, "default", connections.settings["default"] | elsewhere)
        yield
    wait_for(lambda: not our_threads(), 5, "the thread ends, whose message is not that of the next test")


def our_threads():
    return [thread for thread in threading.enumerate() if thread.name == "proxyhealth fallback"]


def test_fallback__database_hangs(unreachable, fleet, hanging):
    with at_most(1):
        snapshot = reader.read()
    assert snapshot.statuses == {}
    assert snapshot.stale_reason.endswith("so no status is known.")
    with at_most(1, "later reads do not wait for it"):
        for _ in range(20):
            reader.read()
    assert len(our_threads()) == 1


@contextmanager
def without_table():
    """Hide a table of the history, as before its migration."""
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE proxyhealth_watch RENAME TO hidden")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE hidden RENAME TO proxyhealth_watch")


def test_fallback__before_the_migration(unreachable, fleet, caplog):
    with without_table():
        for _ in range(3):
            snapshot = reader.read()
        assert snapshot.statuses == {}
        assert snapshot.stale_reason.endswith("so no status is known.")
    assert caplog.text.count("can be read from the database: ") == 1
    assert statuses_of(reader.read()) == BOTH


def test_fallback__database_fails_later(unreachable, fleet, caplog):
    first = reader.read()
    with without_table():
        for _ in range(3):
            assert reader.read() is first
    assert caplog.text.count("can be read from the database: ") == 1


def test_fallback__no_more_threads(unreachable, fleet, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert reader.read().statuses == {}
