"""Reads of the snapshot: the copy in the process, faults, and time limits."""

import copy
import logging
import os
import pickle
import re
import socket
import threading
import time
import warnings

import pytest
from django.conf import settings as django_settings

from proxyhealth.exceptions import StoreError
from proxyhealth.snapshot import Snapshot
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.support.machine import at_most
from tests.support.proxies import wait_for
from tests.support.values import a_round, make_proxy, make_status


def test_read__nothing_yet():
    snapshot = reader.read()
    assert snapshot.statuses == {}
    assert snapshot.number == 0
    assert snapshot.stale
    assert snapshot.fault == ""


def test_read__reads_the_cache_once_per_interval(configure, redis_client):
    configure(READ_INTERVAL=30)
    commit([make_status(make_proxy())], take_token())
    assert reader.read().number == 1
    commit([make_status(make_proxy())], take_token())
    before = redis_client.info("commandstats")["cmdstat_getrange"]["calls"]
    assert [reader.read().number for _ in range(100)] == [1] * 100
    assert redis_client.info("commandstats")["cmdstat_getrange"]["calls"] == before


def test_read__sees_a_commit_after_the_interval(configure):
    configure(READ_INTERVAL=0.1)
    assert reader.read().number == 0
    commit([make_status(make_proxy())], take_token())
    wait_for(lambda: reader.read().number == 1, 2)


def test_read__fetches_only_new_documents(redis_client):
    commit([make_status(make_proxy())], take_token())
    first = reader.read()
    before = redis_client.info("commandstats")["cmdstat_get"]["calls"]
    assert all(reader.read() is first for _ in range(10))
    assert redis_client.info("commandstats")["cmdstat_get"]["calls"] == before


def test_read__gets_the_copy_during_another_read(redis_client, monkeypatch):
    commit([make_status(make_proxy())], take_token())
    reader.read()
    reading, proceed = threading.Event(), threading.Event()
    read_contents = reader.read_contents

    def slow_read(*args):
        reading.set()
        proceed.wait(30)
        return read_contents(*args)

    monkeypatch.setattr(reader, "read_contents", slow_read)
    monkeypatch.setattr(reader, "_GRACE", 60)  # the copy is not overdue
    thread = threading.Thread(target=reader.read)
    thread.start()
    assert reading.wait(5)
    with at_most(1):
        assert reader.read().number == 1
    proceed.set()
    thread.join(5)


def test_read__an_emptied_cache_makes_the_copy_stale(redis_client, caplog):
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    assert not reader.read().stale
    redis_client.flushall()
    snapshot = reader.read()
    assert list(snapshot.statuses) == [proxy.id]
    assert snapshot.stale
    assert snapshot.stale_reason == (
        "The cache has lost the snapshot. This is the last snapshot that was read."
    )
    commit([make_status(proxy)], take_token(), full_round=a_round())
    assert not reader.read().stale


def test_read__another_cache_shares_nothing(settings):
    commit([make_status(make_proxy())], take_token(), full_round=a_round())
    assert reader.read().number == 1
    settings.CACHES = {"default": {**django_settings.CACHES["default"], "KEY_PREFIX": "another"}}
    assert reader.read() == Snapshot()


def test_read__an_invalid_document_is_a_fault(redis_client, snapshot_key):
    redis_client.set(snapshot_key, b'{"format": 99}')
    snapshot = reader.read()
    assert snapshot.statuses == {}
    assert "another format" in snapshot.stale_reason


def test_read__a_damaged_snapshot_serves_the_last_copy(redis_client, snapshot_key, caplog):
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    reader.read()
    head = re.sub(rb"[0-9a-f]{32}", b"0" * 32, redis_client.get(snapshot_key)[:80], count=1)
    redis_client.set(snapshot_key, head)
    snapshot = reader.read()
    assert list(snapshot.statuses) == [proxy.id]
    assert snapshot.stale_reason.startswith("The snapshot cannot be read (")


def test_read__server_down_without_a_copy_is_empty_and_logged(stopped, caplog):
    stopped()
    with caplog.at_level(logging.WARNING), at_most(1):
        snapshot = reader.read()
    assert snapshot.statuses == {}
    assert snapshot.stale_reason.startswith("The cache cannot be read (")
    assert "snapshot stale: The cache cannot be read" in caplog.text


def test_read__server_down_serves_the_last_copy_and_recovers(stopped, valkey, monkeypatch):
    monkeypatch.setattr(reader, "_RETRY_INTERVAL", 0.05)
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    reader.read()
    stopped()
    snapshot = reader.read()
    assert list(snapshot.statuses) == [proxy.id]
    assert "Connection refused" in snapshot.stale_reason or "Connection closed" in snapshot.stale_reason
    valkey.start()
    wait_for(lambda: "lost the snapshot" in reader.read().stale_reason, 3)
    commit([make_status(proxy)], take_token(), full_round=a_round())
    wait_for(lambda: not reader.read().stale, 3)


def test_read__a_server_that_hangs_blocks_for_a_short_time(settings, monkeypatch):
    monkeypatch.setattr(reader, "_RETRY_INTERVAL", 60)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.CACHES = {
            "default": {
                **django_settings.CACHES["default"],
                "LOCATION": f"redis://127.0.0.1:{silent.getsockname()[1]}/0",
                "OPTIONS": {},
            }
        }
        with at_most(2.5):
            assert "cannot be read" in reader.read().stale_reason
        with at_most(0.1, "a server that failed is not read again at once"):
            reader.read()


def test_cache__other_than_redis_is_a_fault(settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    assert "is not a Redis cache" in reader.read().stale_reason
    with pytest.raises(StoreError, match="is not a Redis cache"):
        take_token()


def test_cache__works_with_django_redis(settings):
    settings.CACHES = {
        "default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": django_settings.REDIS_URL}
    }
    commit([make_status(make_proxy())], take_token())
    assert reader.read().number == 1


def test_cache__works_with_a_pool_of_the_host(settings):
    options = {"pool_class": "redis.BlockingConnectionPool", "max_connections": 2}
    settings.CACHES = {"default": {**django_settings.CACHES["default"], "OPTIONS": options}}
    commit([make_status(make_proxy())], take_token())
    assert reader.read().number == 1


def test_read__a_check_in_an_emptied_cache_keeps_the_others(redis_client):
    one, other = make_proxy("one"), make_proxy("other")
    commit([make_status(one), make_status(other)], take_token(), full_round=a_round())
    reader.read()
    redis_client.flushall()
    result = commit([make_status(one, Status.UNREACHABLE)], take_token())
    assert not result.complete
    snapshot = reader.read()
    assert {s.proxy.name: s.status for s in snapshot.statuses.values()} == {
        "one": Status.UNREACHABLE,
        "other": Status.OK,
    }
    assert "lost the snapshot" in snapshot.stale_reason
    result = commit([make_status(one)], take_token(), full_round=a_round())
    assert result.complete
    assert list(reader.read().statuses) == [one.id]
    assert not reader.read().stale


def test_read_anew__does_not_wait_for_the_interval(configure):
    configure(READ_INTERVAL=60)
    assert reader.read().number == 0
    commit([make_status(make_proxy())], take_token())
    assert reader.read().number == 0
    assert reader.read_anew().number == 1


def test_read__works_in_a_child_forked_during_a_read(redis_client):
    """The thread that holds the lock does not exist in the child, and can never release it there."""
    with reader._reader.value._refresh_lock:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of what is tested
            pid = os.fork()
        if pid == 0:
            os._exit(0 if reader.read().fault == "" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_snapshot__can_be_copied_and_pickled():
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    snapshot = reader.read()
    assert pickle.loads(pickle.dumps(snapshot)) == snapshot
    assert copy.deepcopy(snapshot) == snapshot


@pytest.mark.parametrize(
    "options", [{"socket_timeout": None}, {"pool_class": "redis.BlockingConnectionPool"}]
)
def test_read__is_bounded_with_any_pool_of_the_host(settings, options):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.CACHES = {
            "default": {
                **django_settings.CACHES["default"],
                "LOCATION": f"redis://127.0.0.1:{silent.getsockname()[1]}/0",
                "OPTIONS": options,
            }
        }
        with at_most(2.5):
            assert "cannot be read" in reader.read().stale_reason


def wait_until_overdue():
    """``READ_INTERVAL`` must be below ``_GRACE``."""
    copy = reader._reader.value
    wait_for(lambda: copy._is_overdue(reader._GRACE), 2)


def test_read__all_threads_of_an_idle_process_see_the_change(configure, monkeypatch):
    """One reads the cache, and the others wait for it. None of them gets a copy of any age."""
    configure(READ_INTERVAL=0.1)
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    assert reader.read().statuses[proxy.id].status is Status.OK
    commit([make_status(proxy, Status.UNREACHABLE)], take_token())
    wait_until_overdue()
    together = threading.Barrier(4)
    read_contents, statuses = reader.read_contents, []

    def slow_read(*args):
        time.sleep(0.3)  # as from a cache far away
        return read_contents(*args)

    def read():
        together.wait(30)
        statuses.append(reader.read().statuses[proxy.id].status)

    monkeypatch.setattr(reader, "read_contents", slow_read)
    monkeypatch.setattr(reader, "_TIMEOUT", 30)
    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert statuses == [Status.UNREACHABLE] * 4


def test_read__a_cache_that_hangs_makes_the_copy_stale(configure):
    configure(READ_INTERVAL=0.1)
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    assert not reader.read().stale
    wait_until_overdue()
    with reader._reader.value._refresh_lock:  # another thread reads, and gets no reply
        with at_most(2):
            late = reader.read()
        assert late.stale_reason == "The cache does not respond. This is the last snapshot that was read."
        assert late.statuses[proxy.id].status is Status.OK
        assert reader.read() is late
    assert not reader.read().stale
