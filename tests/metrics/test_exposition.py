"""The view ``/metrics``: with Django's test client, and in several processes of gunicorn."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from django.core.exceptions import ImproperlyConfigured
from django.urls import reverse
from django.utils import timezone
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from proxyhealth import health
from proxyhealth.metrics import exposition
from proxyhealth.metrics.collector import ProxyGauge
from proxyhealth.models import Channel, Silence, WorkspaceProxy
from proxyhealth.rounds import dispatch
from proxyhealth.rounds.recheck import run_check
from proxyhealth.statuses import Reason
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.metrics.scraping import samples
from tests.settings import REDIS_PORT
from tests.support.demo import environment
from tests.support.ports import free_port
from tests.support.proxies import wait_for
from tests.support.site import PLAIN_SITE
from tests.support.values import make_proxy, make_status

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).parents[2]
METRICS = (ROOT / "docs" / "metrics.md").read_text()


def families(text):
    """Return type, help text and samples of each family in the text, without regard to order."""
    return {
        family.name: (
            family.type,
            family.documentation,
            sorted((sample.name, sorted(sample.labels.items()), sample.value) for sample in family.samples),
        )
        for family in text_string_to_metric_families(text)
        if "proxyhealth_" in family.name
    }


def commit_statuses(*statuses):
    commit(statuses, take_token())


@pytest.mark.parametrize(
    "name", ["paris", 'a"b', "a\\b", "a\\nb", "a\nb", "a\\", '\\"\n', "Zürich 東京", "{a=b} 1", "# HELP"]
)
def test_exposition__equals_that_of_prometheus_client(name):
    commit_statuses(
        make_status(make_proxy(name), latency=0.1234567),
        make_status(make_proxy("other"), reason=Reason.TIMEOUT, latency=None),
        make_status(make_proxy("third"), latency=1e-07),
    )
    text = exposition.exposition(REGISTRY.collect()).decode()
    parsed = families(text)
    assert parsed == families(generate_latest(REGISTRY).decode())
    _, _, infos = parsed["proxyhealth_proxy_info"]
    assert name in [dict(labels)["name"] for _, labels, _ in infos]


def test_exposition__follows_the_snapshot(paris):
    dispatch.flush(10)  # the round has sent a task, which counts as one that waits
    first = families(exposition.exposition(REGISTRY.collect()).decode())
    assert families(exposition.exposition(REGISTRY.collect()).decode()) == first
    WorkspaceProxy.objects.filter(pk=paris.pk).update(name="lyon")
    run_check([paris.pk])
    _, _, infos = families(exposition.exposition(REGISTRY.collect()).decode())["proxyhealth_proxy_info"]
    assert [dict(labels)["name"] for _, labels, _ in infos] == ["lyon"], "no series of the old name"


def test_exposition__renders_only_changed_gauges():
    def texts():
        return {gauge.name: gauge.text() for gauge in REGISTRY.collect() if isinstance(gauge, ProxyGauge)}

    proxy = make_proxy()
    commit_statuses(make_status(proxy, latency=0.1))
    first, second = texts(), texts()
    assert len(first) == 8
    assert all(second[name] is text for name, text in first.items())
    commit_statuses(make_status(proxy, latency=0.2))
    third = texts()
    changed = [name for name, text in third.items() if text is not first[name]]
    assert changed == ["proxyhealth_probe_duration_seconds"]


def test_metrics__plain_text_without_caching(client, paris):
    response = client.get("/metrics")
    assert response["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "no-store" in response["Cache-Control"]
    assert response.content.endswith(b"\n")
    assert reverse("prometheus-django-metrics") == "/metrics", "the same name as in django-prometheus"


def test_metrics__head_and_other_methods(client):
    response = client.head("/metrics")
    assert (response.status_code, response.content) == (200, b"")
    response = client.post("/metrics")
    assert (response.status_code, response["Allow"]) == (405, "GET, HEAD, OPTIONS")


def test_metrics__pass_promtool(client, serve, promtool):
    WorkspaceProxy.objects.create(name="good", url=serve().url)
    WorkspaceProxy.objects.create(name="sick", url=serve(report={"errors": ["x"]}).url)
    WorkspaceProxy.objects.create(name='odd "name"\\', url="http://127.0.0.1:1")
    health.force_update()
    client.get("/nowhere")  # for some series of django-prometheus
    assert promtool("check", "metrics", input=client.get("/metrics").content.decode()) == ""


# The document


def documented():
    """Return ``name: (type, labels)`` of each series in the table of the document."""
    table = METRICS.partition("## The series\n")[2].partition("\n##")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+)[^|]*\|([^|]*)\| [^|]+ \| [^|]+ \|$", table, re.MULTILINE)
    assert len(rows) == table.count("\n| `"), "a row does not match the pattern"
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_document__series_types_and_labels(serve):
    WorkspaceProxy.objects.create(name="good", url=serve().url)
    WorkspaceProxy.objects.create(name="dead", url="http://127.0.0.1:1")
    health.force_update()
    commit_statuses(make_status(make_proxy("tls"), tls_expires_at=datetime(2030, 1, 1, tzinfo=UTC)))
    Channel.objects.create(name="ops", listens_since=timezone.now())
    now = timezone.now()
    Silence.objects.create(proxies="*", starts=now, ends=now + timedelta(hours=1), reason="work")
    served = {}
    for family in REGISTRY.collect():
        if family.name.startswith("proxyhealth_"):
            name = family.name + "_total" * (family.type == "counter")
            assert family.samples, f"{name} has no sample here, so its labels are unknown"
            served[name] = (family.type, set().union(*(sample.labels for sample in family.samples)))
    assert served == documented()


# The token


@pytest.fixture
def token(configure):
    configure(METRICS_TOKEN="Zm9v-secret")


@pytest.mark.parametrize(
    "header", ["Bearer Zm9v-secret", "bearer Zm9v-secret", "BEARER  Zm9v-secret", "Bearer Zm9v-secret "]
)
def test_token__accepted(client, token, header):
    response = client.get("/metrics", headers={"Authorization": header})
    assert response.status_code == 200
    assert b"proxyhealth_snapshot_up" in response.content


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer Zm9v-secre",
        "Bearer Zm9v-secretX",
        "Bearer zm9v-secret",
        "Bearer Zm9v-secret\u00e9",
        "Basic Zm9v-secret",
        "Zm9v-secret",
    ],
)
def test_token__rejected(client, admin_client, token, header):
    headers = {} if header is None else {"Authorization": header}
    for user in (client, admin_client):
        response = user.get("/metrics", headers=headers)
        assert response.status_code == 401
        assert response["WWW-Authenticate"] == 'Bearer realm="metrics"'
        assert b"proxyhealth" not in response.content
        assert "secret" not in response.content.decode()


def test_token__invalid_setting_is_an_error(client, configure):
    configure(METRICS_TOKEN=None)
    with pytest.raises(ImproperlyConfigured, match="METRICS_TOKEN"):
        client.get("/metrics")


# Several processes


@contextmanager
def gunicorn(folder, **env):
    """Run two processes of gunicorn behind one port. They count in files."""
    port = free_port()
    values = {
        "PROMETHEUS_MULTIPROC_DIR": folder,
        "REDIS_URL": f"redis://127.0.0.1:{REDIS_PORT}/0",
        "DATABASE_URL": f"sqlite:///{folder / 'db.sqlite3'}",
        **PLAIN_SITE,
        **env,
    }
    with (folder / "gunicorn.log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "gunicorn",
                "--workers",
                "2",
                "--bind",
                f"127.0.0.1:{port}",
                "project.wsgi",
            ],
            env=environment(**values),
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield port
        finally:
            process.terminate()
            process.wait(30)


def scrape(port, token=""):
    """Scrape over a new connection. Return None if nothing listens on the port."""
    try:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(f"http://127.0.0.1:{port}/metrics", headers=headers, timeout=10)
    except (requests.ConnectionError, requests.Timeout):
        return None


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
@pytest.mark.parametrize("damage", ["an empty file", "no folder"])
def test_several_processes__unreadable_files_are_omitted(
    client, paris, tmp_path, monkeypatch, caplog, damage, name
):
    folder = tmp_path / "files"
    # prometheus_client sets one of the variables if the other is set.
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    monkeypatch.setenv(name, str(folder))
    if damage == "an empty file":  # left by a process that was killed at its start
        folder.mkdir()
        (folder / "counter_1.db").touch()
    assert samples(client.get("/metrics").content.decode())["proxyhealth_snapshot_up",] == 1
    assert "cannot read the files in PROMETHEUS_MULTIPROC_DIR" in caplog.text


def test_several_processes__both_count_in_each_scrape(paris, tmp_path):
    total = ("django_http_requests_before_middlewares_total",)
    ours = ("proxyhealth_health_check_results", ("proxy_id", str(paris.pk)))
    with gunicorn(tmp_path, PROXYHEALTH_METRICS_TOKEN="Zm9v") as port:
        wait_for(lambda: scrape(port) is not None, 30, f"gunicorn responds: {tmp_path / 'gunicorn.log'}")
        assert scrape(port).status_code == 401
        counts = []

        def both_have_counted():
            series = samples(scrape(port, "Zm9v").text, prefix="")
            assert series[ours] == -1
            counts.append(series[total])
            return len(set(re.findall(r"counter_(\d+)\.db", " ".join(os.listdir(tmp_path))))) == 2

        wait_for(both_have_counted, 30, "two processes have counted")
        counts += [samples(scrape(port, "Zm9v").text, prefix="")[total] for _ in range(20)]
    assert counts == [counts[0] + n for n in range(len(counts))], "a scrape misses counts"
