import re
import socket
import threading
from datetime import UTC, datetime
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.core.cache import caches
from django.test import Client
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from project.celery import app
from proxyhealth import health
from proxyhealth.metrics.collector import SnapshotCollector
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import runner
from proxyhealth.rounds.recheck import run_check
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.counters import count_round, count_task
from proxyhealth.storage.lease import RoundRequest, begin_round, end_round, take_token
from tests.support.machine import at_most
from tests.support.proxies import wait_for
from tests.support.values import make_proxy, make_status

pytestmark = pytest.mark.django_db


def scrape(client=None):
    response = (client or Client()).get("/metrics")
    assert response.status_code == 200
    return response.content.decode()


def samples(text, prefix="proxyhealth_"):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(prefix)
    }


def ours(text):
    return [line for line in text.splitlines() if "proxyhealth_" in line]


@pytest.fixture
def fleet(serve):
    names = {}
    for name, url in {
        "good": serve().url,
        "sick": serve(report={"errors": ["x"]}).url,
        "dead": "http://127.0.0.1:1",
        "new": "",
    }.items():
        names[name] = str(WorkspaceProxy.objects.create(name=name, url=url).pk)
    health.force_update()
    return names


def test_metrics__before_any_round():
    found = samples(scrape())
    assert found["proxyhealth_snapshot_up",] == 0
    assert found["proxyhealth_health_check_duration_seconds_count",] == 0
    assert ("proxyhealth_last_round_timestamp_seconds",) not in found
    assert ("proxyhealth_last_round_duration_seconds",) not in found
    assert not [name for name, *labels in found if name == "proxyhealth_health_check_results"]


def test_metrics__stand_beside_those_of_django_prometheus(fleet):
    text = scrape()
    assert "django_http_requests_before_middlewares_total" in text
    assert "proxyhealth_health_check_results" in text


def test_results__the_number_of_each_status(fleet):
    found = samples(scrape())
    results = {
        name: found["proxyhealth_health_check_results", ("proxy_id", id)] for name, id in fleet.items()
    }
    assert results == {"good": 1, "sick": -1, "dead": -2, "new": 0}


def test_info_and_failures(fleet):
    found = samples(scrape())
    host = health.proxy_hosts(healthy_only=True)[0]
    assert found["proxyhealth_proxy_info", ("host", host), ("name", "good"), ("proxy_id", fleet["good"])] == 1
    reasons = {key[2][1] for key in found if key[0] == "proxyhealth_probe_failure"}
    assert reasons == {"report_errors", "connect"}
    assert found["proxyhealth_probe_duration_seconds", ("proxy_id", fleet["good"])] > 0
    assert ("proxyhealth_probe_duration_seconds", ("proxy_id", fleet["dead"])) not in found


def test_histogram__observes_rounds_as_they_were(fleet):
    found = samples(scrape())
    seconds = health.snapshot().duration
    assert found["proxyhealth_health_check_duration_seconds_sum",] == pytest.approx(seconds)
    bounds = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0]
    buckets = {
        float(key[1][1]): value
        for key, value in found.items()
        if key[0] == "proxyhealth_health_check_duration_seconds_bucket"
    }
    assert sorted(buckets) == [*bounds, float("inf")]
    assert buckets == {bound: float(seconds <= bound) for bound in buckets}


def test_histogram__ends_in_the_bound_that_prometheus_wants(fleet):
    assert re.search(
        r'^proxyhealth_health_check_duration_seconds_bucket\{le="\+Inf"\} 1.0$', scrape(), re.MULTILINE
    )


def test_tasks__runs_by_outcome_and_seconds_of_all_together():
    for outcome, seconds in (("success", 1.5), ("success", 0.25), ("failure", 2)):
        count_task("check_all", outcome, seconds)
    found = samples(scrape())
    runs = {
        (key[2][1], key[1][1]): value
        for key, value in found.items()
        if key[0] == "proxyhealth_task_runs_total"
    }
    assert {key: runs.pop(key) for key in list(runs) if key[0] == "check_all"} == {
        ("check_all", "success"): 2,
        ("check_all", "failure"): 1,
    }
    assert set(runs.values()) == {0}, "those that have not run yet are there, too"
    assert found["proxyhealth_task_runtime_seconds_total", ("task", "check_all")] == 3.75


def test_probe_duration__of_no_time_at_all_is_one():
    quick, dead = make_status(make_proxy(), latency=0.0), make_status(make_proxy("oslo"), latency=None)
    commit([quick, dead], take_token())
    found = {
        key: value
        for key, value in samples(scrape()).items()
        if key[0] == "proxyhealth_probe_duration_seconds"
    }
    assert found == {("proxyhealth_probe_duration_seconds", ("proxy_id", str(quick.proxy.id))): 0}


def test_proxies__are_counted_by_status_and_every_status_is_there(fleet):
    found = samples(scrape())
    counts = {key[1][1]: value for key, value in found.items() if key[0] == "proxyhealth_proxies"}
    assert counts == {"ok": 1, "unhealthy": 1, "unreachable": 1, "unregistered": 1, "unknown": 0}


def test_stale__once_there_was_no_round_for_long(fleet, configure):
    assert samples(scrape())["proxyhealth_snapshot_stale",] == 0
    configure(STALE_AFTER=0.05)
    health.force_update()
    wait_for(lambda: samples(scrape())["proxyhealth_snapshot_stale",] == 1)


def test_offline__is_said_and_the_snapshot_is_stale(fleet):
    assert samples(scrape())["proxyhealth_prober_offline",] == 0
    begun = begin_round()
    count_round("offline", "no canary answered", begun.token)
    found = samples(scrape())
    assert found["proxyhealth_prober_offline",] == found["proxyhealth_snapshot_stale",] == 1
    assert found["proxyhealth_rounds_total", ("outcome", "offline")] == 1


def test_tls__when_the_certificate_ends():
    ends = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    shown, other = make_status(make_proxy(), tls_expires_at=ends), make_status(make_proxy("oslo"))
    commit([shown, other], take_token())
    found = {
        key: value
        for key, value in samples(scrape()).items()
        if key[0] == "proxyhealth_tls_not_after_timestamp_seconds"
    }
    assert found == {
        ("proxyhealth_tls_not_after_timestamp_seconds", ("proxy_id", str(shown.proxy.id))): ends.timestamp()
    }


def test_round_in_progress__while_it_has_its_lease(fleet, redis_client):
    assert samples(scrape())["proxyhealth_round_in_progress",] == 0
    begun = begin_round()
    assert samples(scrape())["proxyhealth_round_in_progress",] == 1
    end_round(begun.token)
    assert samples(scrape())["proxyhealth_round_in_progress",] == 0
    lease = caches["default"].make_key("proxyhealth:lease")
    redis_client.set(lease, "1", px=3_600_000)
    assert samples(scrape())["proxyhealth_round_in_progress",] == 0, (
        "it is from before the clock stepped back"
    )


def test_scrape__is_one_look_into_the_cache_and_leaves_the_copy_as_it_is(fleet, redis_client, configure):
    scrape()
    configure(READ_INTERVAL=60)
    copy = health.snapshot()
    begin = redis_client.info("commandstats")
    begun = begin_round()
    assert samples(scrape())["proxyhealth_round_in_progress",] == 1, "however new the copy is"
    end = redis_client.info("commandstats")
    looks = {name: end[name]["calls"] - begin[name]["calls"] for name in ("cmdstat_getrange", "cmdstat_get")}
    assert looks["cmdstat_getrange"] == 1
    assert health.snapshot() is copy, "what is made of it is not made anew for a round that begins"
    end_round(begun.token)


def test_read_activity__is_of_one_moment_and_keeps_no_document(fleet, redis_client):
    before = redis_client.info("commandstats")
    reader.read_activity()
    after = redis_client.info("commandstats")
    assert after["cmdstat_exec"]["calls"] - before["cmdstat_exec"]["calls"] == 1, "one transaction"
    reader.forget()
    assert reader.read_activity().snapshot.statuses
    assert not reader._reader._look.document, "it is large, and what is made of it is kept"


def test_last_round_and_interval(fleet, configure):
    configure(INTERVAL=7)
    found = samples(scrape())
    snapshot = health.snapshot()
    assert found["proxyhealth_last_round_timestamp_seconds",] == pytest.approx(
        snapshot.checked_at.timestamp()
    )
    assert found["proxyhealth_last_round_duration_seconds",] == pytest.approx(snapshot.duration)
    assert found["proxyhealth_interval_seconds",] == 7


def test_rounds__are_counted_by_outcome_and_a_skipped_tick_is_none(fleet):
    begin_round()
    runner.run_round(RoundRequest(min_gap=30))
    found = samples(scrape())
    outcomes = {key[1][1]: value for key, value in found.items() if key[0] == "proxyhealth_rounds_total"}
    assert outcomes == {"success": 1, "incomplete": 0, "offline": 0, "failure": 0}
    assert found["proxyhealth_skipped_ticks_total",] == 1


def test_deleted_proxies__leave_no_series(fleet):
    gone = fleet["good"]
    WorkspaceProxy.objects.filter(pk=gone).update(deleted=True)
    run_check([UUID(gone)])
    assert gone not in scrape()


def test_namespace__is_put_in_front(fleet, configure):
    configure(METRICS_NAMESPACE="coderd")
    text = scrape()
    assert samples(text) == {}
    assert re.search(r"^coderd_proxyhealth_health_check_results\{proxy_id=", text, re.MULTILINE)
    assert "coderd_proxyhealth_health_check_duration_seconds_bucket" in text


def test_cache_emptied__a_process_that_remembers_says_the_same_as_a_new_one(fleet, redis_client):
    scrape()
    redis_client.flushall()
    begun = begin_round()
    old = scrape()
    assert health.snapshot().statuses, "it is served to others, marked stale"
    reader.forget()
    assert ours(scrape()) == ours(old)
    found = samples(old)
    assert found["proxyhealth_snapshot_up",] == 0
    assert found["proxyhealth_snapshot_stale",] == 1
    assert found["proxyhealth_round_in_progress",] == 1
    assert found["proxyhealth_proxies", ("status", "ok")] == 0
    assert found["proxyhealth_rounds_total", ("outcome", "success")] == 0
    end_round(begun.token)


def test_cache_emptied__what_a_check_finds_before_a_round_is_no_snapshot_yet(fleet, redis_client, sent):
    scrape()
    redis_client.flushall()
    run_check([UUID(fleet["good"])])
    old = scrape()
    assert len(health.snapshot().statuses) == len(fleet)
    reader.forget()
    assert ours(scrape()) == ours(old)
    found = samples(old)
    assert found["proxyhealth_snapshot_up",] == 0
    assert {key[1][1] for key in found if key[0] == "proxyhealth_health_check_results"} == {fleet["good"]}
    health.force_update()
    found = samples(scrape())
    assert found["proxyhealth_snapshot_up",] == 1
    assert found["proxyhealth_rounds_total", ("outcome", "success")] == 1


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
def test_counts__what_a_newer_version_or_a_stranger_has_left_is_no_fault(
    fleet, redis_client, key, field, value
):
    redis_client.hset(caches["default"].make_key(f"proxyhealth:{key}"), field, value)
    found = samples(scrape())
    assert found["proxyhealth_snapshot_up",] == 1
    assert found["proxyhealth_proxies", ("status", "ok")] == 1
    assert not health.snapshot().fault


def test_counts__something_else_in_the_place_of_the_tasks_is_no_fault(fleet, redis_client):
    redis_client.set(caches["default"].make_key("proxyhealth:tasks"), "no hash")
    assert samples(scrape())["proxyhealth_snapshot_up",] == 1
    assert not health.snapshot().fault


def test_counts__something_else_in_the_place_of_the_rounds_is_one(fleet, redis_client):
    key = caches["default"].make_key("proxyhealth:round-stats")
    redis_client.delete(key)
    redis_client.set(key, "no hash")
    assert samples(scrape()) == {("proxyhealth_snapshot_up",): 0}
    assert "WRONGTYPE" in health.snapshot().fault


def test_tasks_waiting__what_is_in_the_queue(fleet):
    assert samples(scrape())["proxyhealth_tasks_waiting",] == 0
    for _ in range(2):
        app.send_task("proxyhealth.tasks.check_all")
    assert samples(scrape())["proxyhealth_tasks_waiting",] == 2


def test_tasks_waiting__no_series_where_nobody_can_tell(fleet, monkeypatch):
    monkeypatch.setitem(app.conf, "broker_url", "memory://")
    monkeypatch.setitem(app.conf, "broker_write_url", "memory://")
    found = samples(scrape())
    assert ("proxyhealth_tasks_waiting",) not in found
    assert found["proxyhealth_snapshot_up",] == 1


def test_cache_silent__is_left_alone_for_a_while(fleet, settings, monkeypatch):
    monkeypatch.setattr(reader, "_RETRY_INTERVAL", 60)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        location = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": location, "OPTIONS": {}}}
        with at_most(2.5):
            assert samples(scrape()) == {("proxyhealth_snapshot_up",): 0}
        with at_most(0.5):
            assert samples(scrape()) == {("proxyhealth_snapshot_up",): 0}


def test_cache_silent__one_scrape_waits_for_it_and_those_behind_it_only_for_a_while(
    fleet, settings, monkeypatch
):
    """A host may let its Redis take any time; all threads of a web server must not end up in scrapes."""
    monkeypatch.setattr(reader, "_SCRAPE_TIMEOUT", 0.3)
    scrape()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        location = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        cache = {**settings.CACHES["default"], "LOCATION": location, "OPTIONS": {"socket_timeout": 60}}
        settings.CACHES = {"default": cache}
        first = threading.Thread(target=scrape)
        first.start()
        wait_for(reader._reader._lock.locked, 5)
        with at_most(2):
            assert samples(scrape()) == {("proxyhealth_snapshot_up",): 0}
        assert first.is_alive()
    first.join(10)
    assert not first.is_alive()


def test_cache_down__answers_with_snapshot_up_0_and_no_old_values(fleet, settings):
    scrape()
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    assert samples(scrape()) == {("proxyhealth_snapshot_up",): 0}


def test_scrape__makes_no_query(fleet, django_assert_num_queries):
    with django_assert_num_queries(0):
        scrape()


def test_labels__of_odd_names_are_escaped(serve):
    WorkspaceProxy.objects.create(name='a"b\\c\nd', url=serve().url)
    health.force_update()
    names = {dict(key[1:]).get("name") for key in samples(scrape())}
    assert 'a"b\\c\nd' in names


def test_register__does_not_ask_the_cache(monkeypatch):
    registry = CollectorRegistry()
    with monkeypatch.context() as patch:
        patch.setattr(reader, "open_cache", None)
        registry.register(SnapshotCollector())
    assert b"proxyhealth_snapshot_up" in generate_latest(registry)


def test_home_page__links_everything(fleet, client):
    text = client.get("/").content.decode()
    for path in ("/admin/proxyhealth/workspaceproxy/health/", "/api/v2/workspaceproxies", "/metrics"):
        assert f'href="{path}"' in text
    for count in ("1 ok", "1 unhealthy", "1 unreachable", "1 unregistered"):
        assert count in text
    assert "Stale." not in text
    assert "signed in" in text
    client.force_login(User.objects.create_user("maria"))
    assert "Signed in as maria" in client.get("/").content.decode()


def test_home_page__says_that_the_snapshot_is_stale(client):
    text = client.get("/").content.decode()
    assert "Stale." in text
    assert "No round has ended yet." not in text, "the reason may name machines"
    client.force_login(User.objects.create_user("operator", is_staff=True))
    assert "No round has ended yet." in client.get("/").content.decode()
