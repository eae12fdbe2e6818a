"""Rounds that many workers share, shard by shard. A real worker ends one in test_tasks."""

import json
import threading
from dataclasses import replace

import pytest
from django.core.cache import caches
from django.db import connection

from project.celery import app
from proxyhealth import tasks
from proxyhealth.exceptions import ProberOffline, RoundFailed
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import runner
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
    """A round of four proxies, of which nobody has begun a shard; its plan, and what was sent."""
    configure(SHARD_SIZE=2)
    urls = [serve().url, serve(report={"errors": ["x"]}).url]
    for i, url in enumerate(2 * urls):
        WorkspaceProxy.objects.create(name=f"p{i}", url=url)
    monkeypatch.setattr(runner, "chord", lambda shards: lambda end: None)
    assert runner.run_round(share=True) == "shared"
    return Plan.load(load_plan())


def run_shards(plan):
    return [
        runner.run_shard(plan.token, index, plan.checked_at, shard) for index, shard in enumerate(plan.shards)
    ]


def test_shards__become_one_commit(shared):
    parts = run_shards(shared)
    assert reader.read().number == 0
    runner.run_finish(shared.token, json.loads(json.dumps(parts)))
    snapshot = reader.read()
    assert [s.status for s in snapshot.statuses.values()] == ["ok", "unhealthy", "ok", "unhealthy"]
    assert {status.checked_at for status in snapshot.statuses.values()} == {shared.checked_at}
    assert (snapshot.number, snapshot.checked_at) == (1, shared.checked_at)
    assert snapshot.outcomes == {"success": 1}
    assert 0 < snapshot.duration < 10
    assert runner.run_round() == "success"


def test_shards__their_round_keeps_others_away(shared):
    assert runner.run_round(RoundRequest(min_gap=30)) == "running"


def test_shards__a_lost_one_leaves_its_proxies_as_they_were(shared, caplog):
    first, second = run_shards(shared)
    runner.run_finish(shared.token, [first, second])
    before = reader.read()
    runner.run_round(share=True)
    plan = Plan.load(load_plan())
    WorkspaceProxy.objects.update(url="http://127.0.0.1:1")
    closed = [replace(proxy, url="http://127.0.0.1:1") for proxy in plan.shards[0]]
    parts = [
        runner.run_shard(plan.token, 0, plan.checked_at, closed),
        {"shard": 1, "lost": "out of memory"},
    ]
    runner.run_finish(plan.token, parts)
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


def test_shards__of_a_round_that_is_over_are_not_probed(shared, serve):
    end_round(shared.token)
    assert [part["lost"] for part in run_shards(shared)] == 2 * ["the round is over"]


def test_shards__that_fail_say_why(shared, monkeypatch):
    monkeypatch.setattr(runner.pool, "probe_all", lambda *args, **options: 1 / 0)
    part = runner.run_shard(shared.token, 0, shared.checked_at, shared.shards[0])
    assert "division by zero" in part["lost"]


def test_shards__an_end_that_comes_twice_commits_once(shared):
    parts = run_shards(shared)
    runner.run_finish(shared.token, parts)
    runner.run_finish(shared.token, parts)
    assert reader.read().number == 1


def test_shards__an_end_of_what_is_committed_gives_the_lease_back(shared, redis_client):
    parts = run_shards(shared)
    runner.run_finish(shared.token, parts)
    # As if its process had been killed before it could say that the round is closed.
    redis_client.hdel(caches["default"].make_key("proxyhealth:round-stats"), "closed")
    runner.run_finish(shared.token, parts)
    assert reader.read().number == 1
    assert begin_round().outcome == "begun"


def test_shards__an_end_that_comes_after_another_round_has_begun_commits_nothing(shared, redis_client):
    parts = run_shards(shared)
    redis_client.delete(caches["default"].make_key("proxyhealth:lease"))
    begin_round()
    runner.run_finish(shared.token, parts)
    assert reader.read().number == 0


def test_shards__of_which_one_was_lost_with_its_process_are_committed_without_it(shared):
    result = runner.run_shard(shared.token, 0, shared.checked_at, shared.shards[0])
    app.backend.store_result(shared.tasks[0], result, "SUCCESS")
    app.backend.store_result(shared.tasks[1], LookupError("killed"), "FAILURE")
    tasks.finish_broken_round("the id of the chord", ticket=shared.token)
    assert set(reader.read().statuses) == {proxy.id for proxy in shared.shards[0]}
    assert reader.read().outcomes == {"incomplete": 1}
    assert "there is no result of it" in reader.read().error
    assert begin_round().outcome == "begun"


def test_shards__whose_worker_died_are_closed_by_the_next_round(shared, redis_client):
    """What the other shards found is not lost, although the next round could not find anything."""
    result = runner.run_shard(shared.token, 0, shared.checked_at, shared.shards[0])
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


def test_shards__a_round_that_slept_does_not_touch_those_of_another(shared, redis_client, monkeypatch):
    """It reads its rows for so long that another one has begun, and shared its own."""
    text = load_plan()
    monkeypatch.setattr(
        runner, "begin_round", lambda *args, **options: RoundStart(RoundOutcome.BEGUN, 7, False)
    )
    with pytest.raises(RoundFailed, match="another round has begun"):
        runner.run_round(share=True)
    assert load_plan() == text
    runner.run_finish(shared.token, run_shards(shared))
    assert reader.read().outcomes == {"failure": 1, "success": 1}


def test_shards__the_end_of_one_round_does_not_commit_the_plan_of_another(shared, redis_client):
    parts = run_shards(shared)
    end_round(shared.token)
    other = begin_round()
    save_plan(other.token, shared.dump())  # as if it were its own
    runner.run_finish(other.token, parts)
    assert reader.read().number == 0


def test_shards__from_one_more_than_shard_size(configure, monkeypatch):
    sent = []
    monkeypatch.setattr(runner, "chord", lambda shards: sent.append)
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


def test_shards__that_are_offline_leave_nothing_behind(configure, monkeypatch, redis_client):
    WorkspaceProxy.objects.create(name="dead", url="http://127.0.0.1:1")
    WorkspaceProxy.objects.create(name="dead too", url="http://127.0.0.1:1")
    configure(SHARD_SIZE=1, CANARY_URLS=["http://127.0.0.1:1/"])
    monkeypatch.setattr(runner, "chord", lambda shards: lambda end: None)
    runner.run_round(share=True)
    plan = Plan.load(load_plan())
    app.backend.store_result(plan.tasks[0], {}, "SUCCESS")
    with pytest.raises(ProberOffline):
        runner.run_finish(plan.token, run_shards(plan))
    assert load_plan() == ""
    assert redis_client.keys("celery-task-meta-*") == []


def test_shards__that_were_left_over_offline_do_not_keep_the_next_round_from_the_truth(shared, redis_client):
    offline = {"lost": "Prober offline: x", "offline": True}
    for index, id in enumerate(shared.tasks):
        app.backend.store_result(id, {"shard": index, **offline}, "SUCCESS")
    redis_client.delete(caches["default"].make_key("proxyhealth:lease"))
    assert runner.run_round() == "success"
    assert reader.read().outcomes == {"offline": 1, "success": 1}
    assert not reader.read().stale
    assert load_plan() == ""


def test_shards__a_plan_that_cannot_be_read_holds_nobody_up(shared, redis_client, caplog):
    save_plan(shared.token, '{"token": 1}')
    redis_client.delete(caches["default"].make_key("proxyhealth:lease"))
    assert runner.run_round() == "success"
    assert "it is no plan of a round" in caplog.text
    assert reader.read().outcomes == {"failure": 1, "success": 1}


def test_shards__that_cannot_be_sent_fail_the_round(configure, monkeypatch):
    def refuse(shards):
        raise ConnectionError("broker down")

    configure(SHARD_SIZE=1)
    for name in ("a", "b"):
        WorkspaceProxy.objects.create(name=name)
    monkeypatch.setattr(runner, "chord", refuse)
    with pytest.raises(RoundFailed, match="broker down"):
        runner.run_round(share=True)
    assert load_plan() == ""
    assert runner.run_round() == "success"


@pytest.mark.parametrize("why", ["disabled://", "rpc://", "eager"])
def test_shards__without_the_means_one_process_runs_the_round(why, configure, monkeypatch, caplog):
    configure(SHARD_SIZE=1)
    for name in ("a", "b"):
        WorkspaceProxy.objects.create(name=name)
    if why == "eager":
        monkeypatch.setitem(app.conf, "task_always_eager", True)
    else:
        monkeypatch.setattr(app, "_local", threading.local())  # the backend is made anew
        monkeypatch.setitem(app.conf, "result_backend", why)
    assert runner.run_round(share=True) == "success"
    assert ("Celery has no result backend for chords" in caplog.text) == (why != "eager")


def test_shards__each_asks_the_canaries_for_itself(configure, monkeypatch):
    """It may be on another host than the others."""
    WorkspaceProxy.objects.create(name="dead", url="http://127.0.0.1:1")
    WorkspaceProxy.objects.create(name="dead too", url="http://127.0.0.1:1")
    configure(SHARD_SIZE=1, CANARY_URLS=["http://127.0.0.1:1/"])
    monkeypatch.setattr(runner, "chord", lambda shards: lambda end: None)
    runner.run_round(share=True)
    plan = Plan.load(load_plan())
    parts = run_shards(plan)
    with pytest.raises(ProberOffline):
        runner.run_finish(plan.token, parts)
    assert reader.read().number == 0
    assert reader.read().outcomes == {"offline": 1}
    assert runner.run_round(RoundRequest(requested_token=take_token()), share=True) == "shared"
