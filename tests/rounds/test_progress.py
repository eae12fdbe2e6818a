"""The progress of a requested check, with a real Redis. The tests run the tasks of the workers themselves."""

from __future__ import annotations

from uuid import uuid4

import pytest
from celery.contrib.testing.worker import start_worker
from django.core.cache import caches
from django.db import connection

from project.celery import app
from proxyhealth import health, tasks
from proxyhealth.exceptions import RoundFailed, StoreError
from proxyhealth.history.records import record_history
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import progress, runner
from proxyhealth.rounds.progress import State, read_progress
from proxyhealth.rounds.recheck import run_pending_check
from proxyhealth.storage.lease import RoundRequest, begin_round, take_token
from proxyhealth.storage.pending import take_pending
from tests.support.proxies import wait_for
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def fresh_reads(configure):
    configure(READ_INTERVAL=0)


@pytest.fixture
def server(serve):
    return serve()


@pytest.fixture
def paris(server):
    proxy = WorkspaceProxy.objects.create(name="paris", url=server.url)
    runner.run_round()
    return proxy


def request(*proxies):
    """Request a check of these proxies, or of all. Return a function that reads its progress."""
    ids = [proxy.pk for proxy in proxies] or None
    id = progress.begin(ids)
    health.request_check(ids).result(30)
    return lambda: read_progress(id)


def changes(current):
    return [(change.name, change.before, change.after) for change in current.changes]


def test_check__queued_then_done_with_what_changed(paris, server):
    current = request(paris)
    assert current().state is State.QUEUED
    server.report = {"errors": ["kaputt"]}
    run_pending_check()
    assert current().state is State.DONE
    assert changes(current()) == [("paris", "ok", "unhealthy")]
    record_history()
    assert changes(current()) == [("paris", "ok", "unhealthy")], "the change moved to the database"


def test_check__nothing_changed(paris):
    current = request(paris)
    run_pending_check()
    assert (current().state, changes(current())) == (State.DONE, [])


def test_check__running_once_a_worker_has_taken_it(paris):
    current = request(paris)
    take_pending()
    assert current().state is State.RUNNING


def test_check__done_by_another_round(paris):
    current = request(paris)
    runner.run_round()
    assert current().state is State.SUPERSEDED


def test_check__result_of_an_earlier_round_does_not_count(paris, server):
    """A slow round that began before the request commits after it."""
    start = begin_round(RoundRequest())
    current = request(paris)
    take_pending()
    runner._run_begun(start.token, share=False, lease=runner.Lease(30))
    assert current().state is State.RUNNING


def test_check__no_worker(paris, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0)
    current = request(paris)()
    assert current.state is State.NO_WORKER
    assert current.queue_length >= 1


def test_check__lost_with_its_worker(paris, monkeypatch):
    current = request(paris)
    take_pending()
    monkeypatch.setattr(progress.steps, "lease_limit", lambda count: 0)
    assert current().state is State.LOST


def test_check__failed(paris):
    current = request(paris)
    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed):
        run_pending_check()
    assert current().state is State.FAILED
    assert "the database is down" in current().error


def test_check__deleted_proxy(paris):
    gone = WorkspaceProxy.objects.create(name="gone", url="http://127.0.0.1:1")
    runner.run_round()
    current = request(gone)
    WorkspaceProxy.objects.filter(pk=gone.pk).update(deleted=True)
    run_pending_check()
    assert current().state is State.DONE
    assert changes(current()) == [("gone", "unreachable", "removed")]


def test_check__counts_the_proxies_that_are_done(paris, server, serve):
    oslo = WorkspaceProxy.objects.create(name="oslo", url=serve().url)
    current = request(paris, oslo)
    take_pending()
    run_pending_check([oslo.pk])
    assert (current().state, current().checked, current().total) == (State.RUNNING, 1, 2)


def test_check__result_that_is_not_confirmed(paris, server, configure):
    configure(READ_INTERVAL=0, FAILURE_THRESHOLD=2)
    current = request(paris)
    server.report = {"errors": ["kaputt"]}
    run_pending_check()
    assert (changes(current()), current().unconfirmed) == ([], ["paris"])


def test_all__queued_running_done(paris, server):
    current = request()
    assert current().state is State.QUEUED
    start = begin_round(RoundRequest())
    assert current().state is State.RUNNING
    server.report = {"errors": ["kaputt"]}
    runner._run_begun(start.token, share=False, lease=runner.Lease(30))
    assert current().state is State.DONE
    assert changes(current()) == [("paris", "ok", "unhealthy")]


def test_all__waits_for_the_round_that_began_before(paris, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0)
    start = begin_round(RoundRequest())
    current = request()
    assert current().state is State.QUEUED
    runner._run_begun(start.token, share=False, lease=runner.Lease(30))
    assert current().state is State.QUEUED, "it may not have probed a proxy that was saved meanwhile"


def test_all__failed(paris):
    current = request()
    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed):
        runner.run_round()
    assert current().state is State.FAILED
    assert "the database is down" in current().error


def test_all__no_worker(paris, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0)
    assert request()().state is State.NO_WORKER


def test_progress__redis_emptied_meanwhile(paris, redis_client):
    current = request(paris)
    redis_client.flushall()
    assert current() is None


def key(name):
    return caches["default"].make_key(f"proxyhealth:{name}")


@pytest.mark.parametrize("value", ["", "x", "1", "1 2 3 4", "1 x", b"\xff 1"])
def test_progress__damaged_request(paris, redis_client, value):
    id = progress.begin([paris.pk])
    redis_client.set(key(f"request:{id.hex}"), value)
    with pytest.raises(StoreError, match="the request is damaged"):
        read_progress(id)


@pytest.mark.parametrize("value", ["", "{", "1", "{}", "[1]", "[1, 2, 3]", '["x", [], ""]', b"\xff"])
def test_progress__damaged_failure(paris, redis_client, value):
    id = progress.begin([paris.pk])
    redis_client.rpush(key("check-failures"), value)
    with pytest.raises(StoreError, match="the request is damaged"):
        read_progress(id)


def test_progress__redis_down(paris, stopped):
    current = request(paris)
    stopped()
    with pytest.raises(StoreError):
        current()


def test_progress__unknown_request():
    assert read_progress(uuid4()) is None


@pytest.mark.django_db(transaction=True)
def test_check__real_worker(paris, server):
    server.report = {"errors": ["kaputt"]}
    current = request(paris)
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="WARNING"):
        done = wait_for(lambda: (each := current()).state in (State.DONE, State.SUPERSEDED) and each, 20)
        wait_for(lambda: take_token() and not tasks._start_times, 20)
    assert changes(done) == [("paris", "ok", "unhealthy")]
