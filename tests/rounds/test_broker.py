import os
import socket
import threading
import warnings

import pytest
from celery import current_app

from project.celery import app
from proxyhealth.rounds import broker
from tests.settings import REDIS_PORT
from tests.support.machine import at_most
from tests.support.proxies import wait_for

PATIENCE = broker._TIMEOUT


@pytest.fixture
def quick(monkeypatch):
    """As short a patience as the app has."""
    monkeypatch.setattr(broker, "_TIMEOUT", PATIENCE)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "proxyhealth broker"]


@pytest.fixture(autouse=True)
def _nobody_asks_on():
    yield
    wait_for(lambda: not threads(), 30, "the question that hangs ends")


@pytest.fixture
def url(monkeypatch):
    """``url("redis://...")``: the broker is there."""

    def change(value):
        monkeypatch.setitem(app.conf, "broker_url", value)
        monkeypatch.setitem(app.conf, "broker_write_url", value)

    return change


def test_connection__another_broker_than_redis_gets_no_options_of_redis(url):
    url("memory://")
    with broker.connection() as connection:
        assert connection is None


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_connection__to_redis_is_bounded(url, scheme):
    url(f"{scheme}://127.0.0.1:1/0")
    with broker.connection() as connection:
        assert connection.transport_options["socket_timeout"] == 5


def test_waiting__asks_anew_in_a_child_that_was_forked_while_a_thread_was_asking(url):
    """The thread is not there in the child, and its question would be waited for in vain, for ever."""
    before = app.conf.broker_url
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        assert broker.queue_length() is None
        url(before)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of what is tested
            pid = os.fork()
        if pid == 0:
            try:
                wait_for(lambda: broker.queue_length() == 0, 10)
            finally:
                os._exit(0 if broker._query._answer.done() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_waiting__counts_messages(redis_client):
    assert broker.queue_length() == 0
    for _ in range(3):
        current_app.send_task("proxyhealth.tasks.check_all")
    assert broker.queue_length() == 3
    redis_client.lpop("celery")
    assert broker.queue_length() == 2
    redis_client.delete("celery")
    assert broker.queue_length() == 0


def test_waiting__counts_every_priority(redis_client):
    for priority in (0, 5, 9):
        current_app.send_task("proxyhealth.tasks.check_all", priority=priority)
    assert redis_client.llen("celery") < 3
    assert broker.queue_length() == 3


def test_waiting__counts_the_queues_that_our_tasks_are_routed_to(monkeypatch):
    monkeypatch.setitem(app.conf, "task_routes", {"proxyhealth.tasks.check_shard": {"queue": "shards"}})
    monkeypatch.setattr(app.amqp, "router", app.amqp.Router(), raising=False)
    current_app.send_task("proxyhealth.tasks.check_shard")
    current_app.send_task("proxyhealth.tasks.check_all")
    current_app.send_task("of.the.host", queue="elsewhere")
    assert broker.queue_length() == 2


def test_waiting__is_not_known_while_the_broker_is_down(url, quick):
    url("redis://127.0.0.1:1/0")
    with at_most(1):
        assert broker.queue_length() is None


def test_waiting__one_that_says_nothing_is_not_waited_for_and_asked_once(url, quick, monkeypatch):
    before = app.conf.broker_url
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        for _ in range(3):
            with at_most(1):
                assert broker.queue_length() is None
            (thread,) = threads()
            assert thread.daemon, "no process waits for it at its end"
    url(before)
    monkeypatch.setattr(broker, "_TIMEOUT", 10)
    wait_for(lambda: broker.queue_length() == 0, 30, "it is asked again")


def test_waiting__a_question_that_had_its_time_costs_the_next_one_nothing(url, quick):
    before = app.conf.broker_url
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        assert broker.queue_length() is None
        with at_most(0.2):
            assert [broker.queue_length() for _ in range(10)] == [None] * 10
    url(before)


def test_waiting__a_thread_that_could_not_start_is_no_question(monkeypatch, redis_client):
    def fail(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert broker.queue_length() is None
    assert broker.queue_length() == 0


@pytest.mark.parametrize("denied", ["exists", "llen"])
def test_waiting__is_not_known_to_who_may_not_look(url, redis_client, denied):
    current_app.send_task("proxyhealth.tasks.check_all")
    redis_client.acl_setuser("half", True, passwords=["+word"], categories=["+@all"], keys=["*"])
    redis_client.acl_setuser("half", True, commands=[f"-{denied}"])
    try:
        url(f"redis://half:word@127.0.0.1:{REDIS_PORT}/0")
        assert broker.queue_length() is None
    finally:
        redis_client.acl_deluser("half")


def test_waiting__is_not_known_if_something_else_is_in_the_queues_place(redis_client):
    redis_client.set("celery", "no list")
    assert broker.queue_length() is None


def test_waiting__is_not_known_of_other_brokers_and_without_one(url, monkeypatch):
    monkeypatch.setitem(app.conf, "task_always_eager", True)
    assert broker.queue_length() is None
    monkeypatch.setitem(app.conf, "task_always_eager", False)
    assert broker.queue_length() == 0
    url("amqp://127.0.0.1:1//")
    assert broker.queue_length() is None
