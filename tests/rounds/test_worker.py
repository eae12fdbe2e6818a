"""The start of a worker. The libraries of green threads are stand-ins, which say what real ones say."""

import sys
import types

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.signals import worker_ready
from kombu import Queue

from project.celery import app
from proxyhealth import health, tasks
from proxyhealth.exceptions import RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import recheck, worker
from proxyhealth.storage import reader
from proxyhealth.task_names import TaskName
from proxyhealth.utils import green_threads
from tests.support.proxies import queued, wait_for

pytestmark = pytest.mark.django_db


@pytest.fixture
def host():
    host = Celery("host", set_as_current=False, broker="memory://")
    yield host
    host.close()


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "celery.concurrency.gevent:TaskPool"])
def test_refuse_green_threads__pool_of_worker(host, pool):
    with pytest.raises(SystemExit, match="must not take tasks from the queue 'celery'"):
        host.WorkController(pool_cls=pool)


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_refuse_green_threads__of_patched_process(host, patched, library):
    """A worker that is started with another pool, in a process of green threads."""
    patched(library)
    with pytest.raises(SystemExit, match=f"so a worker with {library} must not"):
        host.WorkController(pool_cls="solo")


def test_refuse_green_threads__worker_of_other_queues_starts(host):
    """A host may have such workers for its own tasks."""
    host.conf.task_queues = [Queue("celery"), Queue("mail")]
    host.amqp.queues.select("mail")
    tasks._refuse_green_threads(types.SimpleNamespace(app=host, pool_cls="gevent"))


@pytest.fixture
def patched(monkeypatch):
    """``patched("gevent")`` makes the library report that it replaced the threads."""
    modules = {
        "gevent": ("gevent.monkey", "is_module_patched"),
        "eventlet": ("eventlet.patcher", "is_monkey_patched"),
    }

    def patch(library, replaced=("socket", "thread")):
        name, function = modules[library]
        module = types.ModuleType(name)
        setattr(module, function, replaced.__contains__)
        monkeypatch.setitem(sys.modules, name, module)

    return patch


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_rounds__with_green_threads_change_no_status(patched, serve, library):
    server = serve()
    proxy = WorkspaceProxy.objects.create(name="paris", url=server.url)
    patched(library, ())
    assert green_threads() == ""
    health.force_update()
    patched(library)
    with pytest.raises(RoundFailed, match=f"need real threads, but {library} replaced"):
        health.force_update()
    with pytest.raises(RoundFailed, match=f"need real threads, but {library} replaced"):
        recheck.run_check([proxy.pk])
    snapshot = health.snapshot()
    assert snapshot.statuses[proxy.pk].status == "ok"
    assert snapshot.outcomes == {"success": 1, "failure": 1}
    assert "request_check() in place of force_update()" in snapshot.error
    assert server.requests == 1


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(worker, "lease_seconds", lambda: 0.0)
    monkeypatch.setattr(worker, "_REPLY_TIMEOUT", 0.2)


def test_unconsumed_queue__is_shown(impatient, redis_client):
    """A worker with --queues that leave out the queue of our tasks, and no other worker."""
    app.amqp.queues.select("mail")
    try:
        tasks._request_first_round(None)
        wait_for(lambda: reader.read_anew().error, 10)
    finally:
        app.amqp.queues._consume_from = None
    assert reader.read().error == (
        "no running worker takes tasks from the queue 'celery'. Start a worker with --queues celery"
    )
    assert [task["task"] for task in queued(redis_client)] == [TaskName.FIRST_ROUND]


def test_unconsumed_queue__empty_is_not_shown(impatient, redis_client):
    worker._ask_other_workers(app, {"celery"})
    assert reader.read().outcomes == {}


def test_unconsumed_queue__omits_queues_of_other_workers(impatient, redis_client, monkeypatch):
    worker_ready.disconnect(tasks._request_first_round)
    monkeypatch.setitem(app.conf, "task_routes", {TaskName.CHECK_PROXIES.value: {"queue": "checks"}})
    monkeypatch.setattr(app.amqp, "_rtable", None)
    monkeypatch.setattr(app.amqp, "router", app.amqp.Router(), raising=False)
    app.tasks[TaskName.CHECK_PROXIES].apply_async()
    try:
        with start_worker(app, pool="solo", perform_ping_check=False, loglevel="WARNING", queues="celery"):
            monkeypatch.setattr(worker, "_REPLY_TIMEOUT", 2)
            worker._ask_other_workers(app, {"celery", "checks"})
            assert "takes tasks from the queue 'checks'." in reader.read_anew().error
    finally:
        app.amqp.queues._consume_from = None
        worker_ready.connect(tasks._request_first_round)


def test_first_round__not_for_worker_of_other_app(host, redis_client):
    consumer = types.SimpleNamespace(app=host)
    tasks._request_first_round(consumer)
    assert queued(redis_client) == []
