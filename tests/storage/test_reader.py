"""What readers see of the snapshot: its copy in the process, faults, bounds."""

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


def test_read__asks_the_cache_once_in_an_interval(configure, redis_client):
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


def test_read__fetches_the_value_only_if_it_is_a_new_one(redis_client):
    commit([make_status(make_proxy())], take_token())
    first = reader.read()
    before = redis_client.info("commandstats")["cmdstat_get"]["calls"]
    assert all(reader.read() is first for _ in range(10))
    assert redis_client.info("commandstats")["cmdstat_get"]["calls"] == before


def test_read__while_one_thread_asks_the_others_have_the_copy(redis_client, monkeypatch):
    commit([make_status(make_proxy())], take_token())
    reader.read()
    asking, go_on = threading.Event(), threading.Event()

    def slow_ask(self):
        asking.set()
        go_on.wait(30)

    monkeypatch.setattr(reader._Reader, "_ask", slow_ask)
    monkeypatch.setattr(reader, "_GRACE", 60)  # the copy is not old
    thread = threading.Thread(target=reader.read)
    thread.start()
    assert asking.wait(5)
    with at_most(1):
        assert reader.read().number == 1
    go_on.set()
    thread.join(5)


def test_read__an_emptied_cache_serves_the_last_copy_and_says_so(redis_client, caplog):
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    assert not reader.read().stale
    redis_client.flushall()
    snapshot = reader.read()
    assert list(snapshot.statuses) == [proxy.id]
    assert snapshot.stale
    assert snapshot.stale_reason == "The cache has lost the snapshot; this is the last that was read."
    commit([make_status(proxy)], take_token(), full_round=a_round())
    assert not reader.read().stale


def test_read__another_cache_has_nothing_of_the_last_one(settings):
    commit([make_status(make_proxy())], take_token(), full_round=a_round())
    assert reader.read().number == 1
    settings.CACHES = {"default": {**django_settings.CACHES["default"], "KEY_PREFIX": "another"}}
    assert reader.read() == Snapshot()


def test_read__a_value_that_is_no_snapshot_is_a_fault(redis_client, snapshot_key):
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


def test_read__a_server_that_says_nothing_holds_nobody_up_for_long(settings, monkeypatch):
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
        with at_most(0.1, "a server that failed is left alone for a while"):
            reader.read()


def test_cache__that_is_not_redis_is_a_fault_and_a_store_error(settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    assert "is not a Redis cache" in reader.read().stale_reason
    with pytest.raises(StoreError, match="is not a Redis cache"):
        take_token()


def test_cache__django_redis_works_too(settings):
    settings.CACHES = {
        "default": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": django_settings.REDIS_URL}
    }
    commit([make_status(make_proxy())], take_token())
    assert reader.read().number == 1


def test_cache__a_pool_of_the_host_s_own_is_used_as_it_is(settings):
    options = {"pool_class": "redis.BlockingConnectionPool", "max_connections": 2}
    settings.CACHES = {"default": {**django_settings.CACHES["default"], "OPTIONS": options}}
    commit([make_status(make_proxy())], take_token())
    assert reader.read().number == 1


def test_read__a_check_in_an_emptied_cache_does_not_make_the_others_unknown(redis_client):
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


def test_read__works_in_a_child_that_was_forked_while_a_thread_was_asking(redis_client):
    """The thread is not there in the child, and would hold the lock of the reader for ever."""
    reader._reader._lock.acquire()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of what is tested
            pid = os.fork()
        if pid == 0:
            os._exit(0 if reader.read().fault == "" and not reader._reader._lock.locked() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        reader._reader._lock.release()


def test_snapshot__can_be_copied_and_pickled():
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    snapshot = reader.read()
    assert pickle.loads(pickle.dumps(snapshot)) == snapshot
    assert copy.deepcopy(snapshot) == snapshot


@pytest.mark.parametrize(
    "options", [{"socket_timeout": None}, {"pool_class": "redis.BlockingConnectionPool"}]
)
def test_read__is_bounded_whatever_the_pool_of_the_host(settings, options):
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


def test_read__in_a_process_that_was_idle_nobody_gets_what_was_true_before(configure, monkeypatch):
    """One asks, and the others wait for it instead of going on with a copy of any age."""
    configure(READ_INTERVAL=0.1)
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    assert reader.read().statuses[proxy.id].status is Status.OK
    commit([make_status(proxy, Status.UNREACHABLE)], take_token())
    own = reader._reader
    wait_for(own._is_old, 2)
    together = threading.Barrier(4)
    ask, found = own._ask, []

    def slowly():
        time.sleep(0.3)  # the time of a cache that is far away
        ask()

    def read():
        together.wait(30)
        found.append(reader.read().statuses[proxy.id].status)

    monkeypatch.setattr(own, "_ask", slowly)
    monkeypatch.setattr(reader, "_TIMEOUT", 30)
    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [Status.UNREACHABLE] * 4


def test_read__while_the_cache_says_nothing_the_others_go_on_with_what_is_marked_stale(configure):
    configure(READ_INTERVAL=0.1)
    proxy = make_proxy()
    commit([make_status(proxy)], take_token(), full_round=a_round())
    assert not reader.read().stale
    own = reader._reader
    wait_for(own._is_old, 2)
    with own._lock:  # somebody asks, and gets no answer
        with at_most(2):
            late = reader.read()
        assert late.stale_reason == "The cache does not answer; this is the last that was read."
        assert late.statuses[proxy.id].status is Status.OK
        assert reader.read() is late
    assert not reader.read().stale
