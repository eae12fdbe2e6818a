"""The start of a worker. The libraries of green threads are stand-ins, which say what real ones say."""

import sys
import types

import pytest
from celery import Celery
from celery.concurrency.gevent import TaskPool
from celery.contrib.testing.worker import start_worker
from celery.signals import worker_ready
from kombu import Queue

from project.celery import app
from proxyhealth import health, tasks
from proxyhealth.exceptions import RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.probing import pool
from proxyhealth.rounds import recheck, worker
from proxyhealth.storage import reader
from proxyhealth.task_names import TaskName
from proxyhealth.utils import green_threads
from tests.support.proxies import queued, wait_for
from tests.support.values import NOW

pytestmark = pytest.mark.django_db


@pytest.fixture
def host():
    host = Celery("host", set_as_current=False, broker="memory://")
    yield host
    host.close()


class Pool(TaskPool):
    """A pool of the host's own, as CELERY_CUSTOM_WORKER_POOL names it."""


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "celery.concurrency.gevent:TaskPool", Pool])
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


def test_green_threads__of_partly_patched_process(patched):
    patched("gevent", ("signal", "subprocess"))
    patched("eventlet", ("os",))
    assert green_threads() == ""
    patched("gevent", ("select",))
    assert green_threads() == "gevent"


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
    with pytest.raises(RoundFailed, match=f"need real threads, but {library} replaced"):
        list(pool.probe_shards((0, [proxy.as_proxy()]), lambda: None, NOW))
    snapshot = health.snapshot()
    assert snapshot.statuses[proxy.pk].status == "ok"
    assert snapshot.outcomes == {"success": 1, "failure": 1}
    assert "request_check() in place of force_update()" in snapshot.error
    assert server.requests == 1


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(worker, "lease_seconds", lambda: 0.0)
    monkeypatch.setattr(worker, "_REPLY_TIMEOUT", 0.2)


def test_unconsumed_queue__unknown_without_remote_control(impatient, redis_client):
    """Not even the worker that asks responds, for example with SQS."""
    app.tasks[TaskName.CHECK_ALL].apply_async()
    worker._ask_other_workers(app, {"celery"})
    assert reader.read().outcomes == {}


def test_unconsumed_queue__empty_is_not_shown(impatient, redis_client):
    worker._ask_other_workers(app, {"celery"})
    assert reader.read().outcomes == {}


def test_unconsumed_queue__is_shown(impatient, redis_client, monkeypatch):
    """A worker with --queues that leave out one of the queues of our tasks, and no other worker."""
    worker_ready.disconnect(tasks._request_first_round)
    monkeypatch.setattr(tasks.first_round, "apply_async", lambda args: None)
    monkeypatch.setitem(app.conf, "task_routes", {TaskName.CHECK_PROXIES.value: {"queue": "checks"}})
    monkeypatch.setattr(app.amqp, "_rtable", None)
    monkeypatch.setattr(app.amqp, "router", app.amqp.Router(), raising=False)
    app.tasks[TaskName.CHECK_PROXIES].apply_async()
    try:
        with start_worker(app, pool="solo", perform_ping_check=False, loglevel="WARNING", queues="celery"):
            wait_for(app.control.inspect(timeout=0.5).active_queues, 10)  # it may not listen yet
            monkeypatch.setattr(worker, "_REPLY_TIMEOUT", 2)
            tasks._request_first_round(None)
            wait_for(lambda: reader.read_anew().error, 10)
    finally:
        app.amqp.queues._consume_from = None
        worker_ready.connect(tasks._request_first_round)
    assert reader.read().error == (
        "no running worker takes tasks from the queue 'checks'. Start a worker with --queues checks"
    )


def test_first_round__not_for_worker_of_other_app(host, redis_client):
    consumer = types.SimpleNamespace(app=host)
    tasks._request_first_round(consumer)
    assert queued(redis_client) == []
