"""``/metrics``: in this process as Django's test client asks for it, and from several of gunicorn's."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests
from django.core.exceptions import ImproperlyConfigured
from django.urls import reverse
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from proxyhealth import health
from proxyhealth.metrics import exposition
from proxyhealth.metrics.collector import ProxyGauge
from proxyhealth.models import WorkspaceProxy
from proxyhealth.rounds.recheck import run_check
from proxyhealth.statuses import Reason
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.metrics.test_collector import samples
from tests.settings import REDIS_PORT
from tests.support.demo import environment
from tests.support.ports import free_port
from tests.support.proxies import wait_for
from tests.support.values import make_proxy, make_status

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).parents[2]
METRICS = (ROOT / "docs" / "metrics.md").read_text()


def families(text):
    """What the text says, whatever its order."""
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
def test_exposition__is_that_of_prometheus_client(name):
    commit_statuses(
        make_status(make_proxy(name), latency=0.1234567),
        make_status(make_proxy("other"), reason=Reason.TIMEOUT, latency=None),
        make_status(make_proxy("third"), latency=1e-07),
    )
    text = exposition.exposition(REGISTRY.collect()).decode()
    found = families(text)
    assert found == families(generate_latest(REGISTRY).decode())
    _, _, infos = found["proxyhealth_proxy_info"]
    assert name in [dict(labels)["name"] for _, labels, _ in infos]


def test_exposition__is_made_anew_when_the_snapshot_changes(paris):
    first = families(exposition.exposition(REGISTRY.collect()).decode())
    assert families(exposition.exposition(REGISTRY.collect()).decode()) == first
    WorkspaceProxy.objects.filter(pk=paris.pk).update(name="lyon")
    run_check([paris.pk])
    _, _, infos = families(exposition.exposition(REGISTRY.collect()).decode())["proxyhealth_proxy_info"]
    assert [dict(labels)["name"] for _, labels, _ in infos] == ["lyon"], "no series of the old name"


def test_exposition__the_text_of_a_gauge_is_made_only_for_other_values(monkeypatch):
    made, text = [], ProxyGauge.text
    monkeypatch.setattr(ProxyGauge, "text", lambda self: made.append(self.name) or text(self))

    def scrape():
        made.clear()
        exposition.exposition(REGISTRY.collect())
        return made

    proxy = make_proxy()
    commit_statuses(make_status(proxy, latency=0.1))
    assert len(scrape()) == 5
    assert scrape() == []
    commit_statuses(make_status(proxy, latency=0.2))
    assert scrape() == ["proxyhealth_probe_duration_seconds"]
    assert scrape() == []


def test_metrics__are_text_that_nobody_keeps(client, paris):
    response = client.get("/metrics")
    assert response["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "no-store" in response["Cache-Control"]
    assert response.content.endswith(b"\n")
    assert reverse("prometheus-django-metrics") == "/metrics", "as with django-prometheus"


def test_metrics__head_and_other_methods(client):
    response = client.head("/metrics")
    assert (response.status_code, response.content) == (200, b"")
    response = client.post("/metrics")
    assert (response.status_code, response["Allow"]) == (405, "GET, HEAD")


def test_metrics__pass_promtool(client, serve, promtool):
    WorkspaceProxy.objects.create(name="good", url=serve().url)
    WorkspaceProxy.objects.create(name="sick", url=serve(report={"errors": ["x"]}).url)
    WorkspaceProxy.objects.create(name='odd "name"\\', url="http://127.0.0.1:1")
    health.force_update()
    client.get("/nowhere")  # for some of django-prometheus' own
    assert promtool("check", "metrics", input=client.get("/metrics").content.decode()) == ""


# The document


def documented():
    """``name: (type, labels)`` of each series in the table of the document."""
    table = METRICS.partition("## The series\n")[2].partition("\n##")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+)[^|]*\|([^|]*)\| [^|]+ \| [^|]+ \|$", table, re.MULTILINE)
    assert len(rows) == table.count("\n| `"), "every row can be read"
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_document__has_each_series_with_its_type_and_labels(serve):
    WorkspaceProxy.objects.create(name="good", url=serve().url)
    WorkspaceProxy.objects.create(name="dead", url="http://127.0.0.1:1")
    health.force_update()
    commit_statuses(make_status(make_proxy("tls"), tls_expires_at=datetime(2030, 1, 1, tzinfo=UTC)))
    found = {}
    for family in REGISTRY.collect():
        if family.name.startswith("proxyhealth_"):
            name = family.name + "_total" * (family.type == "counter")
            assert family.samples, f"{name} has no sample here, so nobody can tell its labels"
            found[name] = (family.type, set().union(*(sample.labels for sample in family.samples)))
    assert found == documented()


# The token


@pytest.fixture
def token(configure):
    configure(METRICS_TOKEN="Zm9v-secret")


@pytest.mark.parametrize(
    "header", ["Bearer Zm9v-secret", "bearer Zm9v-secret", "BEARER  Zm9v-secret", "Bearer Zm9v-secret "]
)
def test_token__lets_in(client, token, header):
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
def test_token__keeps_out(client, admin_client, token, header):
    headers = {} if header is None else {"Authorization": header}
    for who in (client, admin_client):
        response = who.get("/metrics", headers=headers)
        assert response.status_code == 401
        assert response["WWW-Authenticate"] == 'Bearer realm="metrics"'
        assert b"proxyhealth" not in response.content
        assert "secret" not in response.content.decode()


def test_token__a_wrong_one_in_the_settings_opens_nothing(client, configure):
    configure(METRICS_TOKEN=None)
    with pytest.raises(ImproperlyConfigured, match="METRICS_TOKEN"):
        client.get("/metrics")


# Several processes


@contextmanager
def gunicorn(folder, **env):
    """Two processes of gunicorn behind one port, which count in files."""
    port = free_port()
    values = {
        "PROMETHEUS_MULTIPROC_DIR": folder,
        "REDIS_URL": f"redis://127.0.0.1:{REDIS_PORT}/0",
        "DATABASE_URL": f"sqlite:///{folder / 'db.sqlite3'}",
        "SECRET_KEY": "a key for tests",
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


def ask(port, token=""):
    """The answer to one scrape, over a connection of its own; None while nobody listens."""
    try:
        headers = {"Authorization": f"Bearer {token}"}
        return requests.get(f"http://127.0.0.1:{port}/metrics", headers=headers, timeout=10)
    except (requests.ConnectionError, requests.Timeout):
        return None


@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
@pytest.mark.parametrize("damage", ["an empty file", "no folder"])
def test_several_processes__what_cannot_be_read_of_theirs_takes_nothing_of_ours(
    client, paris, tmp_path, monkeypatch, caplog, damage, name
):
    folder = tmp_path / "files"
    # prometheus_client sets the one if there is the other.
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR")
    monkeypatch.setenv(name, str(folder))
    if damage == "an empty file":  # as a process leaves it that is killed as it begins
        folder.mkdir()
        (folder / "counter_1.db").touch()
    assert samples(client.get("/metrics").content.decode())["proxyhealth_snapshot_up",] == 1
    assert "PROMETHEUS_MULTIPROC_DIR cannot be read" in caplog.text


def test_several_processes__ours_and_those_of_django_prometheus_are_both_there(paris, tmp_path):
    total = ("django_http_requests_before_middlewares_total",)
    ours = ("proxyhealth_health_check_results", ("proxy_id", str(paris.pk)))
    with gunicorn(tmp_path, PROXYHEALTH_METRICS_TOKEN="Zm9v") as port:
        wait_for(lambda: ask(port) is not None, 30, f"gunicorn answers: {tmp_path / 'gunicorn.log'}")
        assert ask(port).status_code == 401
        counts = []

        def both_have_counted():
            found = samples(ask(port, "Zm9v").text, prefix="")
            assert found[ours] == -1
            counts.append(found[total])
            return len(set(re.findall(r"counter_(\d+)\.db", " ".join(os.listdir(tmp_path))))) == 2

        wait_for(both_have_counted, 30, "two processes have counted")
        counts += [samples(ask(port, "Zm9v").text, prefix="")[total] for _ in range(20)]
    assert counts == [counts[0] + n for n in range(len(counts))], "each answer has what both have counted"
