import os
import socket
import threading
import warnings

import pytest
from celery import current_app

from project.celery import app
from proxyhealth.rounds import broker
from proxyhealth.task_names import TaskName
from tests.settings import REDIS_PORT
from tests.support.forks import run_in_fork
from tests.support.machine import at_most
from tests.support.proxies import wait_for

TIMEOUT = broker._TIMEOUT


@pytest.fixture
def real_timeout(monkeypatch):
    """The timeout of the app, which other tests raise."""
    monkeypatch.setattr(broker, "_TIMEOUT", TIMEOUT)


def query_threads():
    return [thread for thread in threading.enumerate() if thread.name == "proxyhealth broker"]


@pytest.fixture(autouse=True)
def _no_query_is_left():
    yield
    wait_for(lambda: not query_threads(), 30, "the query that hangs ends")


@pytest.fixture
def url(monkeypatch):
    """``url("redis://...")`` changes the broker."""

    def change(value):
        monkeypatch.setitem(app.conf, "broker_url", value)
        monkeypatch.setitem(app.conf, "broker_write_url", value)

    return change


def test_connection__other_broker_gets_no_redis_options(url):
    url("memory://")
    with broker.connection() as connection:
        assert connection is None


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_connection__to_redis_has_timeouts(url, scheme):
    url(f"{scheme}://127.0.0.1:1/0")
    with broker.connection() as connection:
        assert connection.transport_options["socket_timeout"] == 5


def test_queue_length__in_fork_during_query(url, real_timeout):
    """The child has no thread that could answer the query of its parent."""
    before = app.conf.broker_url
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        assert broker.queue_length() is None
        url(before)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn about such forks
            pid = os.fork()
        if pid == 0:
            try:
                wait_for(lambda: broker.queue_length() == 0, 10)
            finally:
                os._exit(0 if broker._query.value._length.done() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_queue_length__in_fork_while_lock_is_held(redis_client):
    run_in_fork(
        "from proxyhealth.rounds import broker; broker._TIMEOUT = 15\n",
        hold="broker._query.value._lock.acquire()",
        child="assert broker.queue_length() == 0",
    )


def test_queue_length__counts_messages(redis_client):
    assert broker.queue_length() == 0
    for _ in range(3):
        current_app.send_task(TaskName.CHECK_ALL)
    assert broker.queue_length() == 3
    redis_client.lpop("celery")
    assert broker.queue_length() == 2
    redis_client.delete("celery")
    assert broker.queue_length() == 0


def test_queue_length__counts_every_priority(redis_client):
    for priority in (0, 5, 9):
        current_app.send_task(TaskName.CHECK_ALL, priority=priority)
    assert redis_client.llen("celery") < 3
    assert broker.queue_length() == 3


def test_queue_length__counts_queues_of_routed_tasks(monkeypatch):
    monkeypatch.setitem(app.conf, "task_routes", {TaskName.CHECK_SHARD.value: {"queue": "shards"}})
    monkeypatch.setattr(app.amqp, "router", app.amqp.Router(), raising=False)
    current_app.send_task(TaskName.CHECK_SHARD)
    current_app.send_task(TaskName.CHECK_ALL)
    current_app.send_task("of.the.host", queue="elsewhere")
    assert broker.queue_length() == 2


def test_queue_length__broker_down_is_none(url, real_timeout):
    url("redis://127.0.0.1:1/0")
    with at_most(1):
        assert broker.queue_length() is None


def test_queue_length__silent_broker_is_queried_once(url, real_timeout, monkeypatch):
    before = app.conf.broker_url
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        for _ in range(3):
            with at_most(1):
                assert broker.queue_length() is None
            (thread,) = query_threads()
            assert thread.daemon, "a process that ends does not wait for it"
    url(before)
    monkeypatch.setattr(broker, "_TIMEOUT", 10)
    wait_for(lambda: broker.queue_length() == 0, 30, "the broker is queried again")


def test_queue_length__overdue_query_delays_no_caller(url, real_timeout):
    before = app.conf.broker_url
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        assert broker.queue_length() is None
        with at_most(0.2):
            assert [broker.queue_length() for _ in range(10)] == [None] * 10
    url(before)


def test_queue_length__recovers_if_thread_cannot_start(monkeypatch, redis_client):
    def fail(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert broker.queue_length() is None
    assert broker.queue_length() == 0


@pytest.mark.parametrize("denied", ["exists", "llen"])
def test_queue_length__without_permission_is_none(url, redis_client, denied):
    current_app.send_task(TaskName.CHECK_ALL)
    redis_client.acl_setuser("half", True, passwords=["+word"], categories=["+@all"], keys=["*"])
    redis_client.acl_setuser("half", True, commands=[f"-{denied}"])
    try:
        url(f"redis://half:word@127.0.0.1:{REDIS_PORT}/0")
        assert broker.queue_length() is None
    finally:
        redis_client.acl_deluser("half")


def test_queue_length__key_of_wrong_type_is_none(redis_client):
    redis_client.set("celery", "no list")
    assert broker.queue_length() is None


def test_queue_length__other_broker_or_eager_is_none(url, monkeypatch):
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    assert broker.queue_length() is None
    monkeypatch.setitem(app.conf, "task_always_eager", False)
    assert broker.queue_length() == 0
    url("amqp://127.0.0.1:1//")
    assert broker.queue_length() is None
