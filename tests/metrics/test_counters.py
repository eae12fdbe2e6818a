"""The series of rounds and tasks."""

import re

import pytest
from django.core.cache import caches

from project.celery import app
from proxyhealth import health
from proxyhealth.rounds import runner
from proxyhealth.storage.counters import count_task
from proxyhealth.storage.lease import RoundRequest, begin_round, end_round
from tests.metrics.scraping import samples, scrape

pytestmark = pytest.mark.django_db


def test_histogram__counts_full_rounds(fleet):
    series = samples(scrape())
    seconds = health.snapshot().duration
    assert series["proxyhealth_health_check_duration_seconds_sum",] == pytest.approx(seconds)
    bounds = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0]
    buckets = {
        float(key[1][1]): value
        for key, value in series.items()
        if key[0] == "proxyhealth_health_check_duration_seconds_bucket"
    }
    assert sorted(buckets) == [*bounds, float("inf")]
    assert buckets == {bound: float(seconds <= bound) for bound in buckets}


def test_histogram__last_bucket_is_inf(fleet):
    assert re.search(
        r'^proxyhealth_health_check_duration_seconds_bucket\{le="\+Inf"\} 1.0$', scrape(), re.MULTILINE
    )


def test_tasks__runs_by_outcome_and_total_seconds():
    for outcome, seconds in (("success", 1.5), ("success", 0.25), ("failure", 2)):
        count_task("check_all", outcome, seconds)
    series = samples(scrape())
    runs = {
        (key[2][1], key[1][1]): value
        for key, value in series.items()
        if key[0] == "proxyhealth_task_runs_total"
    }
    assert {key: runs.pop(key) for key in list(runs) if key[0] == "check_all"} == {
        ("check_all", "success"): 2,
        ("check_all", "failure"): 1,
    }
    assert set(runs.values()) == {0}, "tasks that have not run yet are included"
    assert series["proxyhealth_task_runtime_seconds_total", ("task", "check_all")] == 3.75


def test_round_in_progress__while_the_lease_lasts(fleet, redis_client):
    assert samples(scrape())["proxyhealth_round_in_progress",] == 0
    begun = begin_round()
    assert samples(scrape())["proxyhealth_round_in_progress",] == 1
    end_round(begun.token)
    assert samples(scrape())["proxyhealth_round_in_progress",] == 0
    lease = caches["default"].make_key("proxyhealth:lease")
    redis_client.set(lease, "1", px=3_600_000)
    assert samples(scrape())["proxyhealth_round_in_progress",] == 0, (
        "the lease is from before the clock stepped back"
    )


def test_last_round__start_duration_and_interval(fleet, configure):
    configure(INTERVAL=7)
    series = samples(scrape())
    snapshot = health.snapshot()
    assert series["proxyhealth_last_round_timestamp_seconds",] == pytest.approx(
        snapshot.checked_at.timestamp()
    )
    assert series["proxyhealth_last_round_duration_seconds",] == pytest.approx(snapshot.duration)
    assert series["proxyhealth_interval_seconds",] == 7


def test_rounds__by_outcome_without_skipped_ticks(fleet):
    begin_round()
    runner.run_round(RoundRequest(min_gap=30))
    series = samples(scrape())
    outcomes = {key[1][1]: value for key, value in series.items() if key[0] == "proxyhealth_rounds_total"}
    assert outcomes == {"success": 1, "incomplete": 0, "offline": 0, "failure": 0}
    assert series["proxyhealth_skipped_ticks_total",] == 1


@pytest.mark.parametrize(
    ("key", "field", "value"),
    [
        ("tasks", "check_all:retry", "1"),
        ("tasks", "foreign", "1"),
        ("tasks", "check_all:success", "many"),
        ("tasks", "check_all:success", "9" * 400),
        ("tasks", "check_all:microseconds", "9" * 400),
        ("tasks", b"\xff:success", "1"),
        ("round-stats", "count:success", "many"),
        ("round-stats", "count:success", "9" * 400),
        ("round-stats", "error", b"\xff"),
        ("round-stats", "offline", b"\xff"),
        ("round-stats", "error_at", "yesterday"),
        ("round-stats", "later", "1"),
    ],
)
def test_counts__unknown_fields_are_ignored(fleet, redis_client, key, field, value):
    redis_client.hset(caches["default"].make_key(f"proxyhealth:{key}"), field, value)
    series = samples(scrape())
    assert series["proxyhealth_snapshot_up",] == 1
    assert series["proxyhealth_proxies", ("status", "ok")] == 1
    assert not health.snapshot().fault


def test_counts__tasks_of_another_type_are_ignored(fleet, redis_client):
    redis_client.set(caches["default"].make_key("proxyhealth:tasks"), "no hash")
    assert samples(scrape())["proxyhealth_snapshot_up",] == 1
    assert not health.snapshot().fault


def test_counts__rounds_of_another_type_are_a_fault(fleet, redis_client):
    key = caches["default"].make_key("proxyhealth:round-stats")
    redis_client.delete(key)
    redis_client.set(key, "no hash")
    assert samples(scrape()) == {("proxyhealth_snapshot_up",): 0}
    assert "WRONGTYPE" in health.snapshot().fault


def test_tasks_waiting__queue_length():
    assert samples(scrape())["proxyhealth_tasks_waiting",] == 0
    for _ in range(2):
        app.send_task("proxyhealth.tasks.check_all")
    assert samples(scrape())["proxyhealth_tasks_waiting",] == 2


def test_tasks_waiting__absent_for_other_brokers(fleet, monkeypatch):
    monkeypatch.setitem(app.conf, "broker_url", "memory://")
    monkeypatch.setitem(app.conf, "broker_write_url", "memory://")
    series = samples(scrape())
    assert ("proxyhealth_tasks_waiting",) not in series
    assert series["proxyhealth_snapshot_up",] == 1
