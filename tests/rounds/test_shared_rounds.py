"""Rounds that all workers share, without a worker. One in a real worker is in test_tasks."""

import sys
import threading
from dataclasses import replace

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.core.cache import caches
from django.db import connection

from project.celery import app
from proxyhealth import health, tasks
from proxyhealth.exceptions import ProberOffline, RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import runner, sharing, steps
from proxyhealth.rounds.shards import Plan
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.lease import (
    RoundOutcome,
    RoundRequest,
    RoundStart,
    begin_round,
    end_round,
    take_token,
)
from proxyhealth.storage.plan import load_plan, save_plan
from tests.support.values import refuse_queries

pytestmark = pytest.mark.django_db


@pytest.fixture
def shared(configure, monkeypatch, serve):
    """The plan of a shared round of four proxies, before its first shard is probed."""
    configure(SHARD_SIZE=2)
    urls = [serve().url, serve(report={"errors": ["x"]}).url]
    for i, url in enumerate(2 * urls):
        WorkspaceProxy.objects.create(name=f"p{i}", url=url)
    monkeypatch.setattr(sharing, "chord", lambda shards: lambda end: None)
    assert runner.run_round(share=True) == "shared"
    return Plan.load(load_plan())


def run_shard(plan, index):
    return sharing.run_shard(plan.token, index, plan.checked_at, plan.shards[index])


def run_shards(plan):
    return [run_shard(plan, index) for index in range(len(plan.shards))]


def test_run_shard__last_one_commits_the_round(shared):
    run_shard(shared, 1)
    assert reader.read_anew().number == 0
    run_shard(shared, 0)
    snapshot = reader.read()
    assert [s.status for s in snapshot.statuses.values()] == ["ok", "unhealthy", "ok", "unhealthy"]
    assert {status.checked_at for status in snapshot.statuses.values()} == {shared.checked_at}
    assert (snapshot.number, snapshot.checked_at) == (1, shared.checked_at)
    assert snapshot.outcomes == {"success": 1}
    assert 0 < snapshot.duration < 10
    assert runner.run_round() == "success"


def test_run_shard__stores_the_traces(shared):
    run_shards(shared)
    traces = [health.last_trace(proxy.id) for shard in shared.shards for proxy in shard]
    assert {trace.checked_at for trace in traces} == {shared.checked_at}


def test_share__running_round_blocks_others(shared):
    assert runner.run_round(RoundRequest(min_gap=30)) == "running"


def test_finish__proxies_of_lost_shard_keep_status(shared, caplog):
    first, second = run_shards(shared)
    sharing.finish_shared_round(shared.token, [first, second])
    before = reader.read()
    runner.run_round(share=True)
    plan = Plan.load(load_plan())
    WorkspaceProxy.objects.update(url="http://127.0.0.1:1")
    closed = [replace(proxy, url="http://127.0.0.1:1") for proxy in plan.shards[0]]
    parts = [
        sharing.run_shard(plan.token, 0, plan.checked_at, closed),
        {"shard": 1, "lost": "out of memory"},
    ]
    sharing.finish_shared_round(plan.token, parts)
    after = reader.read()
    for proxy in plan.shards[0]:
        assert after.statuses[proxy.id].status is Status.UNREACHABLE
    for proxy in plan.shards[1]:
        assert after.statuses[proxy.id] == before.statuses[proxy.id]
    assert after.checked_at == before.checked_at
    assert after.outcomes == {"success": 1, "incomplete": 1}
    assert after.error == (
        "1 of 2 shards of the round were lost, 2 of 4 proxies keep their last status: out of memory"
    )
    assert "round incomplete" in caplog.text


def test_run_shard__of_closed_round_probes_nothing(shared, serve):
    end_round(shared.token)
    assert [part["lost"] for part in run_shards(shared)] == 2 * ["the round is over"]


@pytest.mark.parametrize(
    ("error", "words"),
    [(ZeroDivisionError("by zero"), "by zero"), (SoftTimeLimitExceeded(), "CELERY_TASK_ANNOTATIONS")],
)
def test_run_shard__failure_is_in_part(shared, monkeypatch, error, words):
    def fail(*args):
        raise error

    monkeypatch.setattr(sharing.pool, "probe_shards", fail)
    part = sharing.run_shard(shared.token, 0, shared.checked_at, shared.shards[0])
    assert words in part["lost"]


def test_finish__delivered_twice_commits_once(shared):
    parts = run_shards(shared)
    sharing.finish_shared_round(shared.token, parts)
    sharing.finish_shared_round(shared.token, parts)
    assert reader.read().number == 1


def test_finish__repeated_after_kill_releases_lease(shared, redis_client):
    parts = run_shards(shared)
    sharing.finish_shared_round(shared.token, parts)
    # As if the process was killed before it closed the round.
    redis_client.hdel(caches["default"].make_key("proxyhealth:round-stats"), "closed")
    sharing.finish_shared_round(shared.token, parts)
    assert reader.read().number == 1
    assert begin_round().outcome == "begun"


def test_finish__lost_lease_commits_nothing(shared, redis_client):
    part = run_shard(shared, 0)
    redis_client.delete(caches["default"].make_key("proxyhealth:lease"))
    begin_round()
    run_shard(shared, 1)
    sharing.finish_shared_round(shared.token, [part])
    assert reader.read().number == 0


def test_finish__after_the_last_shard_deletes_results(shared, redis_client):
    """Not before: without all of them, some backends poll forever whether the chord is ready."""
    parts = []
    for index, id in enumerate(shared.tasks):
        parts.append(run_shard(shared, index))
        app.backend.store_result(id, parts[-1], "SUCCESS")  # as Celery does when the task returns
    assert reader.read().number == 1
    assert len(redis_client.keys("celery-task-meta-*")) == 2
    sharing.finish_shared_round(shared.token, parts)
    assert reader.read().outcomes == {"success": 1}
    assert redis_client.keys("celery-task-meta-*") == []


def test_finish__requests_one_more_round_once(shared, monkeypatch):
    requested = []
    monkeypatch.setattr(steps, "request_check", lambda: requested.append(True))
    assert begin_round(RoundRequest(rerun_if_busy=True)).outcome == "running"
    sharing.finish_shared_round(shared.token, run_shards(shared))
    assert requested == [True]


@pytest.mark.parametrize(("killed", "rounds"), [("process", 1), ("worker", 2)])
def test_run_shard__killed_before_its_commit(shared, monkeypatch, redis_client, killed, rounds):
    """If only its process was killed, the broken chord commits; if the whole worker, the next round."""
    run_shard(shared, 0)
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "finish_shared_round", lambda *args, **options: sys.exit())
        with pytest.raises(SystemExit):
            run_shard(shared, 1)
    assert reader.read_anew().number == 0
    if killed == "process":
        sharing.finish_shared_round(shared.token)
    else:
        redis_client.delete(caches["default"].make_key("proxyhealth:lease"))  # it expires
        assert runner.run_round() == "success"
    assert reader.read_anew().outcomes == {"success": rounds}
    assert load_plan() == ""


def test_run_shard__failed_shard_waits_for_the_chord(shared, monkeypatch):
    """Celery may have delivered its task twice, so another process may succeed."""
    with monkeypatch.context() as patch:
        patch.setattr(sharing.pool, "require_online", lambda statuses: 1 / 0)
        parts = [run_shard(shared, 0)]
    parts.append(run_shard(shared, 1))
    assert reader.read_anew().number == 0
    sharing.finish_shared_round(shared.token, parts)
    assert reader.read_anew().outcomes == {"incomplete": 1}


def test_finish_broken__commits_other_shards(shared):
    result = sharing.run_shard(shared.token, 0, shared.checked_at, shared.shards[0])
    app.backend.store_result(shared.tasks[0], result, "SUCCESS")
    app.backend.store_result(shared.tasks[1], LookupError("killed"), "FAILURE")
    tasks.finish_broken_round("the id of the chord", ticket=shared.token)
    assert set(reader.read().statuses) == {proxy.id for proxy in shared.shards[0]}
    assert reader.read().outcomes == {"incomplete": 1}
    assert "there is no result of it" in reader.read().error
    assert begin_round().outcome == "begun"


def test_left_over__is_committed_by_next_round(shared, redis_client):
    """The other shards are committed, although the next round itself fails."""
    result = sharing.run_shard(shared.token, 0, shared.checked_at, shared.shards[0])
    app.backend.store_result(shared.tasks[0], result, "SUCCESS")
    redis_client.delete(caches["default"].make_key("proxyhealth:lease"))  # it ran out
    with connection.execute_wrapper(refuse_queries), pytest.raises(RoundFailed):
        runner.run_round()
    snapshot = reader.read()
    assert set(snapshot.statuses) == {proxy.id for proxy in shared.shards[0]}
    assert snapshot.outcomes == {"incomplete": 1, "failure": 1}
    assert runner.run_round() == "success"
    assert len(reader.read().statuses) == 4
    assert reader.read().outcomes == {"incomplete": 1, "failure": 1, "success": 1}


def test_share__without_lease_keeps_plan_of_other_round(shared, redis_client, monkeypatch):
    """The round read its proxies for so long that another one has begun and saved its plan."""
    text = load_plan()
    monkeypatch.setattr(
        runner, "begin_round", lambda *args, **options: RoundStart(RoundOutcome.BEGUN, 7, False)
    )
    with pytest.raises(RoundFailed, match="another round has begun"):
        runner.run_round(share=True)
    assert load_plan() == text
    sharing.finish_shared_round(shared.token, run_shards(shared))
    assert reader.read().outcomes == {"failure": 1, "success": 1}


def test_finish__ignores_plan_of_other_round(shared, redis_client):
    parts = [run_shard(shared, 0)]
    end_round(shared.token)
    other = begin_round()
    save_plan(other.token, shared.dump())  # as if it was its own
    sharing.finish_shared_round(other.token, parts)
    assert reader.read().number == 0


def test_share__only_above_shard_size(configure, monkeypatch):
    sent = []
    monkeypatch.setattr(sharing, "chord", lambda shards: sent.append)
    configure(SHARD_SIZE=2)
    for name in ("a", "b"):
        WorkspaceProxy.objects.create(name=name)
    assert runner.run_round(share=True) == "success"
    WorkspaceProxy.objects.create(name="c")
    assert runner.run_round(share=True) == "shared"
    (end,) = sent
    (broken,) = end.options["link_error"]
    assert broken["task"] in app.tasks
    assert set(broken["kwargs"]) == {"ticket"}


def test_finish__offline_deletes_plan_and_results(configure, monkeypatch, redis_client):
    WorkspaceProxy.objects.create(name="dead", url="http://127.0.0.1:1")
    WorkspaceProxy.objects.create(name="dead too", url="http://127.0.0.1:1")
    configure(SHARD_SIZE=1, CANARY_URLS=["http://127.0.0.1:1/"])
    monkeypatch.setattr(sharing, "chord", lambda shards: lambda end: None)
    runner.run_round(share=True)
    plan = Plan.load(load_plan())
    app.backend.store_result(plan.tasks[0], {}, "SUCCESS")
    with pytest.raises(ProberOffline):
        sharing.finish_shared_round(plan.token, run_shards(plan))
    assert load_plan() == ""
    assert redis_client.keys("celery-task-meta-*") == []


def test_left_over__offline_does_not_outlast_next_round(shared, redis_client):
    offline = {"lost": "Prober offline: x", "offline": True}
    for index, id in enumerate(shared.tasks):
        app.backend.store_result(id, {"shard": index, **offline}, "SUCCESS")
    redis_client.delete(caches["default"].make_key("proxyhealth:lease"))
    assert runner.run_round() == "success"
    assert reader.read().outcomes == {"offline": 1, "success": 1}
    assert not reader.read().stale
    assert load_plan() == ""


def test_left_over__invalid_plan_does_not_block_round(shared, redis_client, caplog):
    save_plan(shared.token, '{"token": 1}')
    redis_client.delete(caches["default"].make_key("proxyhealth:lease"))
    assert runner.run_round() == "success"
    assert "the stored plan of a round is invalid" in caplog.text
    assert reader.read().outcomes == {"failure": 1, "success": 1}


def test_share__broker_down_fails_round(configure, monkeypatch):
    def refuse(shards):
        raise ConnectionError("broker down")

    configure(SHARD_SIZE=1)
    for name in ("a", "b"):
        WorkspaceProxy.objects.create(name=name)
    monkeypatch.setattr(sharing, "chord", refuse)
    with pytest.raises(RoundFailed, match="broker down"):
        runner.run_round(share=True)
    assert load_plan() == ""
    assert runner.run_round() == "success"


@pytest.mark.parametrize("why", ["disabled://", "rpc://", "eager"])
def test_share__without_chords_one_process_runs_round(why, configure, monkeypatch, caplog):
    configure(SHARD_SIZE=1)
    for name in ("a", "b"):
        WorkspaceProxy.objects.create(name=name)
    if why == "eager":
        monkeypatch.setitem(app.conf, "task_always_eager", True)
    else:
        monkeypatch.setattr(app, "_local", threading.local())  # Celery creates the backend again
        monkeypatch.setitem(app.conf, "result_backend", why)
    assert runner.run_round(share=True) == "success"
    assert ("Celery has no result backend for chords" in caplog.text) == (why != "eager")


def test_run_shard__uses_canaries_itself(configure, monkeypatch):
    """Each shard may run on another host."""
    WorkspaceProxy.objects.create(name="dead", url="http://127.0.0.1:1")
    WorkspaceProxy.objects.create(name="dead too", url="http://127.0.0.1:1")
    configure(SHARD_SIZE=1, CANARY_URLS=["http://127.0.0.1:1/"])
    monkeypatch.setattr(sharing, "chord", lambda shards: lambda end: None)
    runner.run_round(share=True)
    plan = Plan.load(load_plan())
    parts = run_shards(plan)
    with pytest.raises(ProberOffline):
        sharing.finish_shared_round(plan.token, parts)
    assert reader.read().number == 0
    assert reader.read().outcomes == {"offline": 1}
    assert runner.run_round(RoundRequest(requested_token=take_token()), share=True) == "shared"
