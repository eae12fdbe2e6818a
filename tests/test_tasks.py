"""The tasks, called as functions and, where it takes a worker to show it, run by real ones."""

import time
from uuid import uuid4

import pytest
from billiard.exceptions import WorkerLostError
from celery import Celery
from celery.app.trace import build_tracer
from celery.contrib.testing.worker import start_worker
from celery.signals import task_failure, task_postrun, task_prerun, worker_ready
from django.core.cache import caches
from django.db import connection

from project.celery import app
from proxyhealth import tasks
from proxyhealth.exceptions import RoundFailed
from proxyhealth.metrics import collector as metrics
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import runner
from proxyhealth.storage import reader
from proxyhealth.storage.lease import begin_round, end_round, take_token
from proxyhealth.storage.pending import add_pending
from tests.support.proxies import queued, wait_for
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


def test_worker_ready__asks_for_the_first_round(redis_client):
    worker_ready.send(sender=None)
    (task,) = queued(redis_client)
    assert task["task"] == "proxyhealth.tasks.first_round"


def test_worker_ready__survives_a_broker_that_is_down(monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise ConnectionError("broker down")

    monkeypatch.setattr(tasks.first_round, "apply_async", refuse)
    worker_ready.send(sender=None)
    assert "the next tick brings one: broker down" in caplog.text


def test_first_round__is_not_needed_if_there_has_been_one():
    started = take_token()
    tasks.first_round(started)
    assert reader.read().number == 1
    tasks.first_round(started)
    assert reader.read().number == 1
    tasks.first_round(take_token())
    assert reader.read().number == 1, "it is fresh; a worker that starts needs no other"


def test_first_round__is_needed_if_the_last_one_is_old(redis_client):
    tasks.first_round(take_token())
    key = caches["default"].make_key("proxyhealth:round-stats")
    redis_client.hset(key, "full", int((time.time() - 31) * 1_000_000))
    tasks.first_round(take_token())
    assert reader.read().number == 2


def test_first_round__waits_for_the_lease_of_a_worker_that_was_killed(configure):
    configure(INTERVAL=2)
    begin_round()
    tasks.first_round(take_token())
    assert reader.read().number == 1


def test_tasks__run_what_they_say(serve):
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    tasks.check_proxies([str(proxy.pk)])
    assert reader.read().checked_at is None
    tasks.check_all()
    assert reader.read().checked_at is not None


def test_check_proxies__takes_along_what_is_waiting(serve):
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    oslo = WorkspaceProxy.objects.create(name="oslo", url=serve().url)
    add_pending([str(oslo.pk)])
    tasks.check_proxies([str(paris.pk)])
    assert set(reader.read().statuses) == {paris.pk, oslo.pk}


def test_check_proxies__with_the_cache_away_fails_as_a_check(settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    with pytest.raises(RoundFailed, match="the cache cannot be used"):
        tasks.check_proxies([str(uuid4())])


def test_check_proxies__that_finds_nothing_to_do_does_nothing(redis_client, snapshot_key):
    tasks.check_proxies()
    assert redis_client.get(snapshot_key) is None


def test_check_all__a_tick_soon_after_another_is_skipped_and_counted():
    tasks.check_all(gap=30)
    tasks.check_all(gap=30)
    assert reader.read().number == 1
    assert reader.read().outcomes == {"success": 1, "skipped": 1}


def test_check_all__a_request_is_fulfilled_by_a_round_that_began_after_it():
    asked = take_token()
    tasks.check_all(asked=asked)
    tasks.check_all(asked=asked)
    assert reader.read().number == 1
    assert reader.read().outcomes == {"success": 1}


def test_check_all__by_hand_during_a_round_is_followed_by_one_more():
    begun = begin_round()
    tasks.check_all()
    tasks.check_all(gap=30)
    assert end_round(begun.token)
    assert reader.read().outcomes == {"skipped": 1}


def runs():
    return reader.read_activity().tasks


def test_runs__are_counted_with_their_time(serve):
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve(delay=0.2).url)
    for _ in range(2):
        tasks.check_proxies.apply(([str(proxy.pk)],))
    found = runs()
    assert set(found) == {"check_proxies"}
    assert found["check_proxies"][:2] == (2, 0)
    assert 400_000 <= found["check_proxies"].microseconds < 5_000_000
    assert not tasks._begun, "nothing is left of a run that ended"


def test_runs__that_fail_are_counted_as_failures():
    with connection.execute_wrapper(refuse_queries):
        tasks.check_all.apply()
    found = runs()["check_all"]
    assert found[:2] == (0, 1)
    assert 0 < found.microseconds < 5_000_000
    tasks.check_proxies.apply(("not a list of ids",))
    assert runs()["check_proxies"][:2] == (0, 1)


@pytest.mark.parametrize("state", [None, "RETRY", "IGNORED", "REJECTED"])
def test_runs__that_neither_succeed_nor_fail_are_not_counted(state):
    """None is that of a run that was cut off: who has killed it tells of it."""
    id = str(uuid4())
    task_prerun.send(sender=tasks.check_all, task_id=id, task=tasks.check_all)
    task_postrun.send(sender=tasks.check_all, task_id=id, task=tasks.check_all, state=state)
    assert runs() == {}
    assert id not in tasks._begun


def test_runs__that_end_with_their_process_are_counted_by_the_one_above():
    lost = str(uuid4())
    task_failure.send(sender=tasks.check_shard, task_id=lost, exception=WorkerLostError("killed"))
    assert runs() == {"check_shard": (0, 1, 0)}
    task_failure.send(sender=tasks.check_shard, task_id=lost, exception=WorkerLostError("killed"))
    assert runs() == {"check_shard": (0, 1, 0)}, "Celery tells twice of one that was killed at its time limit"


def test_runs__of_which_the_result_cannot_be_stored_are_counted_once(monkeypatch):
    store_result = app.backend.store_result

    def store_failures(id, result, state, **kwargs):
        if state == "SUCCESS":
            raise ConnectionError("the result backend is away for a moment")
        return store_result(id, result, state, **kwargs)

    monkeypatch.setattr(app.backend, "store_result", store_failures)
    task, id = tasks.check_shard, str(uuid4())
    trace = build_tracer(task.name, task, app=app)
    with pytest.warns(RuntimeWarning, match="Exception raised outside body"):
        trace(id, (1, 0, "2026-11-22T08:00:00+00:00", []), {}, {"id": id, "delivery_info": {}})
    assert runs()["check_shard"][:2] == (1, 0)


def test_runs__of_the_host_are_its_own():
    host = Celery(set_as_current=False)

    @host.task(name="host.tasks.divide")
    def divide(by):
        return 1 / by

    assert divide.apply((1,)).state == "SUCCESS"
    assert divide.apply((0,)).state == "FAILURE"
    assert runs() == {}


def test_runs__that_cannot_be_counted_are_runs_all_the_same(settings, caplog):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    assert isinstance(tasks.check_proxies.apply(([str(uuid4())],)).result, RoundFailed)
    assert "Signal handler" not in caplog.text, "Celery logs what goes wrong in one"


def test_runs__every_task_is_in_the_metrics_before_its_first_run():
    names = {name.removeprefix("proxyhealth.tasks.") for name in app.tasks if name.startswith("proxyhealth.")}
    assert names == set(metrics.TASKS)


def test_tasks__none_of_them_is_acknowledged_late():
    """A worker that holds such a message when its broker goes away does not survive it."""
    host = Celery(set_as_current=False)
    host.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, task_ignore_result=True)
    ours = [task for name, task in host.tasks.items() if name.startswith("proxyhealth.")]
    assert len(ours) == 6
    assert not any(task.acks_late or task.reject_on_worker_lost for task in ours)
    assert [task.name for task in ours if not task.ignore_result] == ["proxyhealth.tasks.check_shard"]
    assert app.conf.worker_disable_prefetch, "nor does one that has fetched more than it can begin"


@pytest.fixture
def worker():
    """A worker in a thread. It gets no first round: the test's database is not its own."""
    worker_ready.disconnect(tasks._request_first_round)
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="WARNING"):
        yield
    worker_ready.connect(tasks._request_first_round)


def test_worker__ends_a_round_of_shards(serve, configure, worker, redis_client):
    configure(SHARD_SIZE=3)
    server = serve(delay=0.3)
    for i in range(7):
        WorkspaceProxy.objects.create(name=f"p{i}", url=server.url)
    begin = time.monotonic()
    assert runner.run_round(share=True) == "shared"
    snapshot = wait_for(lambda: reader.read_anew().checked_at and reader.read_anew(), 20)
    assert {status.status for status in snapshot.statuses.values()} == {"ok"}
    assert len(snapshot.statuses) == 7
    assert {status.checked_at for status in snapshot.statuses.values()} == {snapshot.checked_at}
    wait_for(lambda: "finish_round" in runs(), 5, "the last task is counted")
    assert {name: found[:2] for name, found in runs().items()} == {
        "check_shard": (3, 0),
        "finish_round": (1, 0),
    }
    assert snapshot.outcomes == {"success": 1}
    assert server.requests == 7
    # One after the other, in this worker; and it was one round.
    assert 3 * server.delay <= snapshot.duration <= time.monotonic() - begin
    assert sum(snapshot.rounds.counts) == 1
    assert snapshot.rounds.sum == pytest.approx(snapshot.duration)
    wait_for(lambda: not redis_client.keys("celery-task-meta-*"), what="results do not pile up")
    wait_for(lambda: runner.run_round() == "success", what="the lease was given back")
