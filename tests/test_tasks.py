"""The tasks, called as functions, and one shared round in a real worker."""

import time
from uuid import uuid4

import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Celery
from celery.app.trace import build_tracer
from celery.contrib.testing.worker import start_worker
from celery.fixups.django import DjangoWorkerFixup
from celery.signals import task_failure, task_postrun, task_prerun, worker_ready
from django.core.cache import caches
from django.db import connection

from project.celery import app
from proxyhealth import tasks
from proxyhealth.exceptions import RoundFailed
from proxyhealth.metrics.collector import SnapshotCollector
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import runner
from proxyhealth.storage import reader
from proxyhealth.storage.lease import begin_round, end_round, take_token
from proxyhealth.storage.pending import add_pending
from proxyhealth.task_names import TaskName
from tests.support.forks import run_python
from tests.support.proxies import queued, wait_for
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


def test_worker_ready__requests_first_round(redis_client):
    worker_ready.send(sender=None)
    (task,) = queued(redis_client)
    assert task["task"] == TaskName.FIRST_ROUND


def test_worker_ready__broker_down_is_logged(monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise ConnectionError("broker down")

    monkeypatch.setattr(tasks.first_round, "apply_async", refuse)
    worker_ready.send(sender=None)
    assert "the next tick runs one: broker down" in caplog.text


def test_first_round__skipped_after_recent_round():
    started = take_token()
    tasks.first_round(started)
    assert reader.read().number == 1
    tasks.first_round(started)
    assert reader.read().number == 1
    tasks.first_round(take_token())
    assert reader.read().number == 1, "a round that is recent is enough for a new worker"


def test_first_round__runs_if_last_round_is_old(redis_client):
    tasks.first_round(take_token())
    key = caches["default"].make_key("proxyhealth:round-stats")
    redis_client.hset(key, "full", int((time.time() - 31) * 1_000_000))
    tasks.first_round(take_token())
    assert reader.read().number == 2


def test_first_round__waits_for_lease_of_killed_worker(configure):
    configure(INTERVAL=2)
    begin_round()
    tasks.first_round(take_token())
    assert reader.read().number == 1


def test_tasks__run_check_and_round(serve):
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    tasks.check_proxies([str(proxy.pk)])
    assert reader.read().checked_at is None
    tasks.check_all()
    assert reader.read().checked_at is not None


def test_check_proxies__includes_pending_ids(serve):
    paris = WorkspaceProxy.objects.create(name="paris", url=serve().url)
    oslo = WorkspaceProxy.objects.create(name="oslo", url=serve().url)
    add_pending([str(oslo.pk)])
    tasks.check_proxies([str(paris.pk)])
    assert set(reader.read().statuses) == {paris.pk, oslo.pk}


def test_check_proxies__cache_down_raises_round_failed(settings):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    with pytest.raises(RoundFailed, match="the cache cannot be used"):
        tasks.check_proxies([str(uuid4())])


def test_check_proxies__without_ids_does_nothing(redis_client, snapshot_key):
    tasks.check_proxies()
    assert redis_client.get(snapshot_key) is None


def test_check_all__early_tick_is_skipped_and_counted():
    tasks.check_all(gap=30)
    tasks.check_all(gap=30)
    assert reader.read().number == 1
    assert reader.read().outcomes == {"success": 1, "skipped": 1}


def test_check_all__later_round_fulfils_request():
    token = take_token()
    tasks.check_all(asked=token)
    tasks.check_all(asked=token)
    assert reader.read().number == 1
    assert reader.read().outcomes == {"success": 1}


def test_check_all__request_during_round_causes_another():
    begun = begin_round()
    tasks.check_all()
    tasks.check_all(gap=30)
    assert end_round(begun.token)
    assert reader.read().outcomes == {"skipped": 1}


def task_runs():
    return reader.read_activity().tasks


def test_task_runs__counted_with_duration(serve):
    proxy = WorkspaceProxy.objects.create(name="paris", url=serve(delay=0.2).url)
    for _ in range(2):
        tasks.check_proxies.apply(([str(proxy.pk)],))
    ((name, runs),) = task_runs().items()
    assert (name, runs.success, runs.failure) == ("check_proxies", 2, 0)
    assert 400_000 <= runs.microseconds < 5_000_000
    assert not tasks._start_times, "an ended run leaves nothing behind"


def test_task_runs__failures_are_counted():
    with connection.execute_wrapper(refuse_queries):
        tasks.check_all.apply()
    runs = task_runs()["check_all"]
    assert (runs.success, runs.failure) == (0, 1)
    assert 0 < runs.microseconds < 5_000_000
    tasks.check_proxies.apply(("not a list of ids",))
    assert task_runs()["check_proxies"][:2] == (0, 1)


@pytest.mark.parametrize("state", [None, "RETRY", "IGNORED", "REJECTED"])
def test_task_runs__other_states_are_not_counted(state):
    """None is the state of a killed run, which the parent process reports."""
    id = str(uuid4())
    task_prerun.send(sender=tasks.check_all, task_id=id, task=tasks.check_all)
    task_postrun.send(sender=tasks.check_all, task_id=id, task=tasks.check_all, state=state)
    assert task_runs() == {}
    assert id not in tasks._start_times


def test_task_runs__killed_process_counted_by_parent():
    lost = str(uuid4())
    task_failure.send(sender=tasks.check_shard, task_id=lost, exception=WorkerLostError("killed"))
    assert task_runs() == {"check_shard": (0, 1, 0)}
    task_failure.send(sender=tasks.check_shard, task_id=lost, exception=WorkerLostError("killed"))
    assert task_runs() == {"check_shard": (0, 1, 0)}, (
        "Celery reports a run twice if it exceeds its time limit"
    )


@pytest.mark.parametrize("error", [TimeLimitExceeded(5), WorkerLostError("signal 9 (SIGKILL)")])
def test_task_runs__killed_round_is_shown(error):
    """By the time limit of an annotation, or by the system."""
    for name in ("check_all", "check_shard", "check_proxies"):
        task_failure.send(sender=getattr(tasks, name), task_id=str(uuid4()), exception=error)
    snapshot = reader.read()
    assert snapshot.outcomes == {"failure": 1}
    assert snapshot.error == f"the process of the round was killed: {error}"


def test_task_runs__unstored_result_counted_once(monkeypatch):
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
    assert task_runs()["check_shard"][:2] == (1, 0)


def test_task_runs__tasks_of_host_are_not_counted(host):
    @host.task(name="host.tasks.divide")
    def divide(by):
        return 1 / by

    assert divide.apply((1,)).state == "SUCCESS"
    assert divide.apply((0,)).state == "FAILURE"
    assert task_runs() == {}


def test_task_runs__cache_down_does_not_break_task(settings, caplog):
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    assert isinstance(tasks.check_proxies.apply(([str(uuid4())],)).result, RoundFailed)
    assert "Signal handler" not in caplog.text, "Celery logs exceptions of signal handlers"


def test_task_names__are_registered_and_in_metrics():
    assert {name for name in app.tasks if name.startswith("proxyhealth.")} == set(TaskName)
    labels = [sample.labels for metric in SnapshotCollector().collect() for sample in metric.samples]
    assert {label["task"] for label in labels if "task" in label} == {name.short for name in TaskName}


def test_tasks__are_acknowledged_early(host):
    """A worker that holds an unacknowledged message ends when it loses its broker."""
    host.conf.update(task_acks_late=True, task_reject_on_worker_lost=True, task_ignore_result=True)
    ours = [task for name, task in host.tasks.items() if name.startswith("proxyhealth.")]
    assert len(ours) == len(TaskName)
    assert not any(task.acks_late or task.reject_on_worker_lost for task in ours)
    assert [task.name for task in ours if not task.ignore_result] == [TaskName.CHECK_SHARD]
    assert app.conf.worker_disable_prefetch, "nor may a worker prefetch more messages than it can run"


@pytest.fixture
def host():
    """Another app with our tasks. Celery reads its configuration when it creates the tasks."""
    host = Celery(set_as_current=False, broker="memory://", backend="cache+memory://")
    yield host
    host.close()


def tasks_of(host):
    """Return all but the one with limits of its own."""
    names = set(TaskName) - {TaskName.SEND_SIGNALS}
    return [task for name, task in host.tasks.items() if name in names]


def test_tasks__time_limit_of_host_does_not_apply(host):
    """The worker passes the limit of a task to the pool, and that of the host only without one."""
    host.conf.update(task_time_limit=5, task_soft_time_limit=4)
    assert {(task.soft_time_limit, task.time_limit) for task in tasks_of(host)} == {(86_400, 86_400)}


@pytest.mark.parametrize(
    ("annotation", "limits"), [({"time_limit": 5}, (5, 5)), ({"soft_time_limit": 4}, (4, 86_400))]
)
def test_tasks__time_limit_of_annotation_applies(host, annotation, limits):
    """Celery refuses to send a task whose soft limit is above the other one."""
    host.conf.task_annotations = {"*": annotation}
    host.tasks[TaskName.CHECK_ALL].apply_async()
    assert {(task.soft_time_limit, task.time_limit) for task in tasks_of(host)} == {limits}


@pytest.mark.parametrize(
    ("annotation", "limits"),
    [({}, (15, 30)), ({"time_limit": 5}, (5, 5)), ({"soft_time_limit": 60, "time_limit": 90}, (60, 90))],
)
def test_send_signals__has_short_time_limits(host, annotation, limits):
    """Receivers are code of the host, and may hang."""
    host.conf.update(task_time_limit=500, task_annotations={TaskName.SEND_SIGNALS: annotation})
    task = host.tasks[TaskName.SEND_SIGNALS]
    task.apply_async()
    assert (task.soft_time_limit, task.time_limit) == limits


@pytest.mark.parametrize(
    ("accepted", "host_serializer", "serializer"),
    [
        (["json"], "json", "json"),
        (["json", "yaml"], "yaml", "json"),
        (["application/json", "pickle"], "pickle", "json"),
        (["pickle"], "pickle", "pickle"),
        (["auth"], "auth", "auth"),
    ],
)
def test_tasks__are_sent_as_json_if_accepted(host, accepted, host_serializer, serializer):
    host.conf.update(task_serializer=host_serializer, accept_content=accepted)
    assert {task._get_exec_options()["serializer"] for task in tasks_of(host)} == {serializer}


def test_tasks__shards_are_sent_by_host_with_yaml(redis_client):
    """Celery cannot send a chord as YAML."""
    run_python(
        "from celery import chord\n"
        "from project.celery import app\n"
        "from proxyhealth.task_names import TaskName\n"
        "shard, end = (app.tasks[name] for name in (TaskName.CHECK_SHARD, TaskName.FINISH_ROUND))\n"
        "chord([shard.s(1, 0, '', []), shard.s(1, 1, '', [])])(end.s(1))\n"
        "from tests.support.values import make_proxy, make_status\n"
        "part = {'shard': 0, 'found': [make_status(make_proxy()).judgement()]}\n"
        "app.backend.store_result('id', part, 'SUCCESS')\n"
        "assert app.backend.get_result('id') == part\n",
        DJANGO_SETTINGS_MODULE="tests.support.settings_with_yaml",
    )
    assert len(queued(redis_client)) == 2


@pytest.fixture
def worker(monkeypatch):
    """A worker in a thread, without its first round: it does not see the database of the test."""
    # It starts in this thread, and would close the connection of the test, in its transaction.
    for name in ("_close_database", "_maybe_close_db_fd"):
        monkeypatch.setattr(DjangoWorkerFixup, name, lambda *args, **kwargs: None)
    worker_ready.disconnect(tasks._request_first_round)
    with start_worker(app, pool="solo", perform_ping_check=False, loglevel="WARNING"):
        yield
    worker_ready.connect(tasks._request_first_round)


def test_worker__runs_shared_round(serve, configure, worker, redis_client):
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
    wait_for(lambda: "finish_round" in task_runs(), 5, "the last task is counted")
    assert task_runs()["check_shard"][:2] == (3, 0)
    assert task_runs()["finish_round"][:2] == (1, 0)
    assert snapshot.outcomes == {"success": 1}
    assert server.requests == 7
    # One process ran the shards, as one round.
    assert server.delay <= snapshot.duration <= time.monotonic() - begin
    assert sum(snapshot.rounds.counts) == 1
    assert snapshot.rounds.sum == pytest.approx(snapshot.duration)
    wait_for(lambda: not redis_client.keys("celery-task-meta-*"), what="the results are deleted")
    wait_for(lambda: runner.run_round() == "success", what="the lease is released")


def test_worker__silent_proxies_of_all_shards_at_once(serve, configure, worker):
    """One process waits for all of them in one TIMEOUT, as after the failure of a region."""
    configure(SHARD_SIZE=1)
    server = serve()
    server.gate.clear()
    for i in range(3):
        WorkspaceProxy.objects.create(name=f"p{i}", url=server.url)
    assert runner.run_round(share=True) == "shared"
    wait_for(lambda: server.requests == 3, 4, "the process takes the other shards while it waits")
    server.gate.set()
    snapshot = wait_for(lambda: reader.read_anew().checked_at and reader.read_anew(), 20)
    assert [status.status for status in snapshot.statuses.values()] == 3 * ["ok"]
    assert snapshot.outcomes == {"success": 1}
    wait_for(lambda: "finish_round" in task_runs(), 5, "the last task is counted")
    assert task_runs()["check_shard"][:2] == (3, 0)
    wait_for(lambda: runner.run_round() == "success", what="the lease is released")
