"""The time when a status began, and a last probe that contradicts it, on the pages of the admin."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.template import Context, Template
from django.test.utils import CaptureQueriesContext

from proxyhealth.display import time_tag
from proxyhealth.models import WorkspaceProxy
from proxyhealth.testing import FakeStatus, fake_snapshot

pytestmark = pytest.mark.django_db

LIST = "/admin/proxyhealth/workspaceproxy/"
HEALTH = f"{LIST}health/"
BEGIN = datetime(2026, 11, 20, 8, 30, tzinfo=UTC)
LOST = FakeStatus("unreachable", "timeout", errors=["no <b>answer</b>"])
NOTE = "The last probe found <strong>unreachable</strong> (timeout), not confirmed yet."


@pytest.fixture(autouse=True)
def rows():
    for name in ("aden", "oslo", "paris"):
        WorkspaceProxy.objects.create(name=name, url=f"https://{name}.example.com")


def cells(response, name):
    """Return the cells of the row of a proxy, with their tags."""
    assert response.status_code == 200
    rows = re.findall(r"<tr.*?</tr>", response.content.decode(), re.DOTALL)
    (row,) = (row for row in rows if f"<bdi>{name}</bdi>" in row)
    return re.findall(r"<td.*?</td>", row, re.DOTALL)


@pytest.mark.parametrize("path", [HEALTH, LIST])
def test_pages__show_when_a_status_began(admin_client, path):
    with fake_snapshot(paris=FakeStatus("ok", since=BEGIN)):
        text = "".join(cells(admin_client.get(path), "paris"))
    assert time_tag(BEGIN, with_age=path == LIST) in text
    assert "not confirmed" not in text


def test_list__shows_for_how_long(admin_client):
    since = datetime.now(UTC) - timedelta(days=2, hours=3, minutes=1)
    with fake_snapshot(paris=FakeStatus("ok", since=since)):
        text = "".join(cells(admin_client.get(LIST), "paris"))
    assert "</time> (<bdi>2\xa0days, 3\xa0hours</bdi>)" in text


@pytest.mark.parametrize("path", [HEALTH, LIST])
def test_pages__beginning_that_is_not_known(admin_client, path):
    with fake_snapshot():
        text = "".join(cells(admin_client.get(path), "paris"))
    assert "<time" not in text


@pytest.mark.parametrize("path", [HEALTH, LIST])
def test_pages__say_that_the_last_probe_contradicts(admin_client, path):
    with fake_snapshot(
        paris=FakeStatus("ok", raw=LOST, checked_at=BEGIN, since=BEGIN), checked_at=datetime.now(UTC)
    ) as fake:
        text = "".join(cells(admin_client.get(path), "paris"))
    assert ">ok</span>" in text
    assert NOTE in text
    assert f"{fake.snapshot.checked_at:%Y-%m-%d %H:%M:%S}" in text  # of the last probe


def test_list__says_that_a_recovery_is_not_confirmed(admin_client):
    with fake_snapshot(paris=FakeStatus("unreachable", raw="ok")):
        text = "".join(cells(admin_client.get(LIST), "paris"))
    assert "The last probe found <strong>ok</strong>, not confirmed yet." in text


def test_health_page__shows_what_the_last_probe_reported(admin_client):
    with fake_snapshot(paris=FakeStatus("ok", warnings=["warm"], raw=LOST)):
        text = "".join(cells(admin_client.get(HEALTH), "paris"))
    assert text.index("warm") < text.index(NOTE) < text.index("no &lt;b&gt;answer&lt;/b&gt;")


def test_health_page__folds_both_reports_apart(admin_client):
    raw = FakeStatus("unhealthy", errors=["x" * 301])
    with fake_snapshot(paris=FakeStatus("ok", warnings=["y" * 301], raw=raw)):
        text = "".join(cells(admin_client.get(HEALTH), "paris"))
    id = WorkspaceProxy.objects.get(name="paris").pk
    assert re.findall('<details id="(.*?)">', text) == [f"report-{id}", f"raw-report-{id}"]


def test_health_page__contradicted_status_is_the_first_of_its_kind(admin_client):
    with fake_snapshot(aden="ok", oslo=FakeStatus("ok", raw="unreachable"), paris="unhealthy"):
        page = admin_client.get(HEALTH).context["page"]
    assert [status.proxy.name for status in page] == ["paris", "oslo", "aden"]


@pytest.mark.parametrize("path", [HEALTH, LIST])
def test_pages__no_query_for_since_or_raw(admin_client, path):
    counts = []
    for fakes in ({}, dict.fromkeys(("aden", "oslo", "paris"), FakeStatus("ok", raw=LOST))):
        with fake_snapshot(fakes), CaptureQueriesContext(connection) as queries:
            admin_client.get(path)
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_badge__template_of_the_project_gets_both(settings, tmp_path):
    (tmp_path / "proxyhealth").mkdir()
    (tmp_path / "proxyhealth/badge.html").write_text("{{ status }} {{ since.year }} {{ raw.status }}")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    with fake_snapshot(paris=FakeStatus("ok", since=BEGIN, raw=LOST)):
        text = Template('{% load proxyhealth %}{% proxy_badge "paris" %}').render(Context())
    assert text == "ok 2026 unreachable"
