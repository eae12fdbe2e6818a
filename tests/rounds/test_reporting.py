"""What workers and beat report of themselves."""

from __future__ import annotations

import os
import socket
import types

import pytest
from celery import Celery
from celery.concurrency.solo import TaskPool as SoloPool
from celery.concurrency.thread import TaskPool as ThreadPool
from kombu import Connection, Queue

from project.celery import app
from proxyhealth import isolation
from proxyhealth.rounds import reporting
from proxyhealth.rounds.reporting import BeatReports, WorkerReports
from proxyhealth.storage import presence
from proxyhealth.task_names import TaskName
from tests.settings import REDIS_PORT
from tests.support.forwarder import Forwarder
from tests.support.proxies import wait_for


@pytest.fixture
def host():
    host = Celery("host", set_as_current=False, broker="memory://")
    yield host
    host.close()


def a_worker(host, pool=None, connection="a connection"):
    pool = pool or SoloPool(limit=4)
    return types.SimpleNamespace(app=host, hostname="celery@a", pool=pool, connection=connection)


@pytest.mark.parametrize(("pool", "name", "size"), [(SoloPool, "solo", 1), (ThreadPool, "thread", 3)])
def test_worker__says_its_pool(host, pool, name, size):
    pool = pool(limit=3)
    pool.start()
    found = WorkerReports().describe(a_worker(host, pool))
    pool.stop()
    assert (found["pool"], found["concurrency"]) == (name, size)
    assert (found["host"], found["pid"]) == (socket.gethostname(), os.getpid())
    assert (found["takes"], found["missing"], found["connected"]) == (["celery"], [], True)


def test_worker__of_other_queues_says_what_it_leaves(host):
    host.conf.task_queues = [Queue("celery"), Queue("mail")]
    host.amqp.queues.select("mail")
    found = WorkerReports().describe(a_worker(host))
    assert (found["takes"], found["missing"]) == ([], ["celery"])


def test_worker__without_its_broker(host):
    assert WorkerReports().describe(a_worker(host, connection=None))["connected"] is False


def test_worker__pool_of_the_host_that_fails(host):
    """A pool of the host may lack what others have."""
    found = WorkerReports().describe(a_worker(host, pool=object()))
    assert (found["pool"], found["concurrency"], found["processes"]) == ("", None, [])


def test_tasks__are_as_long_as_this_thread_has_seen_them():
    reports = WorkerReports()
    long = types.SimpleNamespace(id="1", name="shop.report")
    assert reports._tasks([long]) == [["shop.report", 0.0]]
    reports._seen["1"] -= 60
    found = reports._tasks([types.SimpleNamespace(id="2", name="shop.mail"), long])
    assert found == [["shop.report", 60.0], ["shop.mail", 0.0]]
    assert reports._tasks([]) == []
    assert reports._seen == {}, "it must not grow"


@pytest.fixture
def deployed(monkeypatch):
    """A process that is no test."""
    monkeypatch.setattr(isolation, "is_decided", lambda: False)


def test_worker__reports_until_it_is_stopped(host, redis_client, deployed):
    reports = WorkerReports()
    reports.start(a_worker(host))
    reports.start(a_worker(host))
    (sign,) = wait_for(lambda: presence.read().running)
    assert sign.text("name") == "celery@a"
    reports.stop()
    reports.stop()
    signs = presence.read()
    assert (signs.running, signs.workers[0].values["stopped"]) == ([], True)


def test_worker__goes_on_without_redis(host, stopped, valkey, deployed, monkeypatch):
    monkeypatch.setattr(presence, "PERIOD", 0.01)
    stopped()
    reports = WorkerReports()
    reports.start(a_worker(host))
    valkey.start()
    wait_for(lambda: presence.read().running)
    reports.stop()


def test_worker__in_a_test_reports_nothing(host, redis_client):
    reports = WorkerReports()
    reports.start(a_worker(host))
    reports.stop()
    assert presence.read().workers == []


def test_beat__reports_each_tick_and_its_failure(redis_client, deployed, monkeypatch):
    monkeypatch.setattr(BeatReports, "report", BeatReports.store)
    task = app.tasks[TaskName.CHECK_ALL]
    with Forwarder(REDIS_PORT) as broker, Connection(f"redis://127.0.0.1:{broker.port}/0") as connection:
        producer = app.amqp.Producer(connection, auto_declare=False)  # as beat makes it
        task.apply_async((), {"gap": 1}, producer=producer, retry=False)
        (sign,) = presence.read().beats
        assert (sign.text("host"), sign.count("pid")) == (socket.gethostname(), os.getpid())
        assert sign.text("error") == ""
        broker.refuse(b"-READONLY You can't write against a read only replica.\r\n")
        with pytest.raises(Exception, match="read only replica"):
            task.apply_async((), {"gap": 2}, producer=producer, retry=False)
        (sign,) = presence.read().beats
        assert "read only replica" in sign.text("error")
        assert sign.since
    task.apply_async()
    assert presence.read().beats[0].at == sign.at, "not a tick of beat"


def test_beat__does_not_wait_for_redis(stopped, deployed):
    stopped()
    reports = BeatReports()
    reports.report({})
    thread = reports._thread
    thread.join(10)
    reporting.report_beat()
    assert not thread.is_alive()
