"""The series of the proxies and of the snapshot, and scrapes while the cache is emptied, silent or down."""

import re
import socket
import threading
from datetime import UTC, datetime
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from prometheus_client import CollectorRegistry, generate_latest

from proxyhealth import health
from proxyhealth.metrics.collector import SnapshotCollector
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds import dispatch
from proxyhealth.rounds.recheck import run_check
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.counters import count_round
from proxyhealth.storage.lease import begin_round, end_round, take_token
from tests.metrics.scraping import samples, scrape
from tests.support.machine import at_most
from tests.support.proxies import wait_for
from tests.support.values import make_proxy, make_status

pytestmark = pytest.mark.django_db


def own_lines(text):
    return [line for line in text.splitlines() if "proxyhealth_" in line]


def test_metrics__before_any_round():
    series = samples(scrape())
    assert series["proxyhealth_snapshot_up",] == 0
    assert series["proxyhealth_health_check_duration_seconds_count",] == 0
    assert ("proxyhealth_last_round_timestamp_seconds",) not in series
    assert ("proxyhealth_last_round_duration_seconds",) not in series
    assert not [name for name, *labels in series if name == "proxyhealth_health_check_results"]


def test_metrics__include_django_prometheus(fleet):
    text = scrape()
    assert "django_http_requests_before_middlewares_total" in text
    assert "proxyhealth_health_check_results" in text


def test_results__number_per_status(fleet):
    series = samples(scrape())
    results = {
        name: series["proxyhealth_health_check_results", ("proxy_id", id)] for name, id in fleet.items()
    }
    assert results == {"good": 1, "sick": -1, "dead": -2, "new": 0}


def test_results__unprobed_and_unknown_to_this_version():
    newer, unprobed = make_status(make_proxy(), Status.UNKNOWN), WorkspaceProxy.objects.create(name="oslo")
    commit([newer], take_token())
    series = samples(scrape())
    assert series["proxyhealth_health_check_results", ("proxy_id", str(newer.proxy.id))] == -3
    assert series["proxyhealth_proxies", ("status", "unknown")] == 1
    assert not [key for key in series if str(unprobed.pk) in str(key)]


def test_info_and_failures__labels_and_values(fleet):
    series = samples(scrape())
    host = health.proxy_hosts(healthy_only=True)[0]
    id = fleet["good"]
    assert series["proxyhealth_proxy_info", ("host", host), ("name", "good"), ("proxy_id", id)] == 1
    reasons = {key[2][1] for key in series if key[0] == "proxyhealth_probe_failure"}
    assert reasons == {"report_errors", "connect"}
    assert series["proxyhealth_probe_duration_seconds", ("proxy_id", fleet["good"])] > 0
    assert ("proxyhealth_probe_duration_seconds", ("proxy_id", fleet["dead"])) not in series


def test_probe_duration__zero_has_a_series():
    quick, dead = make_status(make_proxy(), latency=0.0), make_status(make_proxy("oslo"), latency=None)
    commit([quick, dead], take_token())
    series = {
        key: value
        for key, value in samples(scrape()).items()
        if key[0] == "proxyhealth_probe_duration_seconds"
    }
    assert series == {("proxyhealth_probe_duration_seconds", ("proxy_id", str(quick.proxy.id))): 0}


def test_proxies__count_per_status(fleet):
    series = samples(scrape())
    counts = {key[1][1]: value for key, value in series.items() if key[0] == "proxyhealth_proxies"}
    assert counts == {"ok": 1, "unhealthy": 1, "unreachable": 1, "unregistered": 1, "unknown": 0}


def test_proxies_with_warnings__counts_them(serve):
    for name, warnings in {"calm": [], "warm": ["disk 80 % full"], "hot": ["disk 95 % full", "swap"]}.items():
        server = serve(report={"errors": ["kaputt"] if name == "hot" else [], "warnings": warnings})
        WorkspaceProxy.objects.create(name=name, url=server.url)
    health.force_update()
    assert samples(scrape())[("proxyhealth_proxies_with_warnings",)] == 2


def test_stale__without_a_recent_round(fleet, configure):
    assert samples(scrape())["proxyhealth_snapshot_stale",] == 0
    configure(STALE_AFTER=0.05)
    health.force_update()
    wait_for(lambda: samples(scrape())["proxyhealth_snapshot_stale",] == 1)


def test_offline__sets_stale_too(fleet):
    assert samples(scrape())["proxyhealth_prober_offline",] == 0
    begun = begin_round()
    count_round("offline", "no canary responded", begun.token)
    series = samples(scrape())
    assert series["proxyhealth_prober_offline",] == series["proxyhealth_snapshot_stale",] == 1
    assert series["proxyhealth_rounds_total", ("outcome", "offline")] == 1
    count_round("failure", "the database is down", begun.token)
    count_round("incomplete", "a shard was lost", begun.token)
    assert samples(scrape())["proxyhealth_prober_offline",] == 1, "until the next full round"
    end_round(begun.token)
    health.force_update()
    assert samples(scrape())["proxyhealth_prober_offline",] == 0


def test_tls__expiry_date():
    ends = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    shown, other = make_status(make_proxy(), tls_expires_at=ends), make_status(make_proxy("oslo"))
    commit([shown, other], take_token())
    series = {
        key: value
        for key, value in samples(scrape()).items()
        if key[0] == "proxyhealth_tls_not_after_timestamp_seconds"
    }
    assert series == {
        ("proxyhealth_tls_not_after_timestamp_seconds", ("proxy_id", str(shown.proxy.id))): ends.timestamp()
    }


def test_scrape__reads_once_and_keeps_the_copy(fleet, redis_client, configure):
    scrape()
    configure(READ_INTERVAL=60)
    copy = health.snapshot()
    begin = redis_client.info("commandstats")
    begun = begin_round()
    assert samples(scrape())["proxyhealth_round_in_progress",] == 1, "the scrape does not use the copy"
    end = redis_client.info("commandstats")
    looks = {name: end[name]["calls"] - begin[name]["calls"] for name in ("cmdstat_getrange", "cmdstat_get")}
    assert looks["cmdstat_getrange"] == 1
    assert health.snapshot() is copy, "the start of a round does not replace the copy"
    end_round(begun.token)


def test_read_activity__one_transaction_without_document(fleet, redis_client):
    before = redis_client.info("commandstats")
    reader.read_activity()
    after = redis_client.info("commandstats")
    assert after["cmdstat_exec"]["calls"] - before["cmdstat_exec"]["calls"] == 1, "one transaction"
    reader.forget()
    assert reader.read_activity().snapshot.statuses
    contents = reader._reader.value.value.contents
    assert len(contents.document) < 100, "the document is large, and only its statuses are needed"


def test_deleted_proxy__has_no_series(fleet):
    gone = fleet["good"]
    WorkspaceProxy.objects.filter(pk=gone).update(deleted=True)
    run_check([UUID(gone)])
    assert gone not in scrape()


def test_namespace__prefixes_all_names(fleet, configure):
    configure(METRICS_NAMESPACE="coderd")
    text = scrape()
    assert samples(text) == {}
    assert re.search(r"^coderd_proxyhealth_health_check_results\{proxy_id=", text, re.MULTILINE)
    assert "coderd_proxyhealth_health_check_duration_seconds_bucket" in text


def test_cache_emptied__old_and_new_process_agree(fleet, redis_client):
    scrape()
    redis_client.flushall()
    begun = begin_round()
    old = scrape()
    assert health.snapshot().statuses, "other readers get the copy, marked as stale"
    reader.forget()
    assert own_lines(scrape()) == own_lines(old)
    series = samples(old)
    assert series["proxyhealth_snapshot_up",] == 0
    assert series["proxyhealth_snapshot_stale",] == 1
    assert series["proxyhealth_round_in_progress",] == 1
    assert series["proxyhealth_proxies", ("status", "ok")] == 0
    assert series["proxyhealth_rounds_total", ("outcome", "success")] == 0
    end_round(begun.token)


def test_cache_emptied__check_before_a_round(fleet, redis_client, sent):
    scrape()
    redis_client.flushall()
    run_check([UUID(fleet["good"])])
    dispatch.flush(10)
    old = scrape()
    assert len(health.snapshot().statuses) == len(fleet)
    reader.forget()
    assert own_lines(scrape()) == own_lines(old)
    series = samples(old)
    assert series["proxyhealth_snapshot_up",] == 0
    assert {key[1][1] for key in series if key[0] == "proxyhealth_health_check_results"} == {fleet["good"]}
    health.force_update()
    series = samples(scrape())
    assert series["proxyhealth_snapshot_up",] == 1
    assert series["proxyhealth_rounds_total", ("outcome", "success")] == 1


def test_cache_silent__second_scrape_does_not_wait(fleet, settings, monkeypatch):
    monkeypatch.setattr(reader, "_RETRY_INTERVAL", 60)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        location = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": location, "OPTIONS": {}}}
        with at_most(2.5):
            assert samples(scrape()) == {("proxyhealth_snapshot_up",): 0}
        with at_most(0.9):  # a read of the cache takes at least a second
            assert samples(scrape()) == {("proxyhealth_snapshot_up",): 0}


def test_cache_silent__concurrent_scrapes_time_out(fleet, settings, monkeypatch):
    """A host may set a long socket_timeout. Scrapes must not occupy all threads of a web server."""
    monkeypatch.setattr(reader, "_SCRAPE_TIMEOUT", 0.3)
    scrape()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        location = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        cache = {**settings.CACHES["default"], "LOCATION": location, "OPTIONS": {"socket_timeout": 60}}
        settings.CACHES = {"default": cache}
        first = threading.Thread(target=scrape)
        first.start()
        wait_for(reader._reader.value._refresh_lock.locked, 5)
        with at_most(2):
            assert samples(scrape()) == {("proxyhealth_snapshot_up",): 0}
        assert first.is_alive()
    first.join(10)
    assert not first.is_alive()


def test_cache_down__only_snapshot_up_is_left(fleet, settings):
    scrape()
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:1/0"}}
    assert samples(scrape()) == {("proxyhealth_snapshot_up",): 0}


def test_scrape__one_query_of_the_silences(fleet, configure):
    def queries():
        with CaptureQueriesContext(connection) as captured:
            scrape()
        return [query["sql"] for query in captured if "proxyhealth_silence" in query["sql"]]

    assert len(queries()) == 1
    configure(READ_INTERVAL=60)
    scrape()
    assert queries() == []


def test_labels__are_escaped(serve):
    WorkspaceProxy.objects.create(name='a"b\\c\nd', url=serve().url)
    health.force_update()
    names = {dict(key[1:]).get("name") for key in samples(scrape())}
    assert 'a"b\\c\nd' in names


def test_register__does_not_read_the_cache(monkeypatch):
    registry = CollectorRegistry()
    with monkeypatch.context() as patch:
        patch.setattr(reader, "open_cache", None)
        registry.register(SnapshotCollector())
    assert b"proxyhealth_snapshot_up" in generate_latest(registry)
