"""The time when a status began, and a last probe that contradicts it, in the JSON."""

from datetime import UTC, datetime, timedelta

import pytest

from proxyhealth import health
from proxyhealth.history.records import record_history
from proxyhealth.models import WorkspaceProxy
from proxyhealth.testing import FakeStatus, fake_snapshot
from tests.support.api import LIST, REGIONS

pytestmark = pytest.mark.django_db

BEGIN = datetime(2026, 11, 20, 8, 30, tzinfo=UTC)
EVERY_VIEW = (LIST, f"{LIST}?q=paris", f"{LIST}?limit=1", f"{LIST}/paris")


@pytest.fixture
def row():
    return WorkspaceProxy.objects.create(name="paris", url="https://paris.example.com")


def status_in(response):
    body = response.json()
    return (body["regions"][0] if "regions" in body else body)["status"]


@pytest.mark.parametrize("path", EVERY_VIEW)
def test_since__in_every_view_of_a_proxy(viewer, row, path):
    with fake_snapshot(paris=FakeStatus("ok", since=BEGIN)):
        status = status_in(viewer.get(path))
    assert status["since"] == "2026-11-20T08:30:00.000000Z"
    assert "raw" not in status


def test_since__null_if_it_is_not_known(viewer, row):
    with fake_snapshot():
        assert status_in(viewer.get(LIST))["since"] is None


@pytest.mark.parametrize("path", EVERY_VIEW)
def test_raw__only_while_the_last_probe_contradicts(viewer, row, path):
    lost = FakeStatus("unreachable", "timeout", errors=["no answer"])
    with fake_snapshot(paris=FakeStatus("ok", since=BEGIN, checked_at=BEGIN, raw=lost)) as fake:
        status = status_in(viewer.get(path))
    assert (status["status"], status["reason"], status["report"]["errors"]) == ("ok", "", [])
    assert status["checked_at"] == "2026-11-20T08:30:00.000000Z"
    assert status["raw"] == {
        "status": "unreachable",
        "reason": "timeout",
        "report": {"errors": ["no answer"], "warnings": []},
        "checked_at": f"{fake.snapshot.checked_at:%Y-%m-%dT%H:%M:%S.%f}Z",
    }


def test_raw__until_enough_rounds_confirm_it(viewer, serve, configure):
    configure(FAILURE_THRESHOLD=2)
    proxy = serve()
    WorkspaceProxy.objects.create(name="paris", url=proxy.url)
    health.force_update()
    before = status_in(viewer.get(f"{LIST}/paris"))
    proxy.report = {"errors": ["disk full"]}
    health.force_update()
    doubted = status_in(viewer.get(f"{LIST}/paris"))
    assert (doubted["status"], doubted["since"], doubted["raw"]["status"]) == (
        "ok",
        before["since"],
        "unhealthy",
    )
    health.force_update()
    after = status_in(viewer.get(f"{LIST}/paris"))
    assert (after["status"], after["report"]["errors"]) == ("unhealthy", ["disk full"])
    assert "raw" not in after
    # It began with the first of both probes.
    assert before["since"] < after["since"] < after["checked_at"]
    record_history()
    transitions = viewer.get(f"{LIST}/paris/history").json()["transitions"]
    assert [(each["after"], each["at"]) for each in transitions] == [
        ("unhealthy", after["since"]),
        ("ok", before["since"]),
    ]


def test_raw__does_not_change_the_regions(viewer, row):
    bodies = []
    for raw in (None, "unreachable"):
        with fake_snapshot(paris=FakeStatus("ok", raw=raw)):
            bodies.append(viewer.get(REGIONS).content)
    assert bodies[0] == bodies[1]
    assert b'"healthy":true' in bodies[0]


def test_etag__changes_with_since_and_raw(viewer, row):
    etags = set()
    for fake in (
        FakeStatus("ok", checked_at=BEGIN, since=BEGIN),
        FakeStatus("ok", checked_at=BEGIN, since=BEGIN - timedelta(microseconds=1)),
        FakeStatus("ok", checked_at=BEGIN, since=BEGIN, raw="unreachable"),
        FakeStatus("ok", checked_at=BEGIN, since=BEGIN, raw="unhealthy"),
    ):
        with fake_snapshot(paris=fake, checked_at=BEGIN):
            etags.update(viewer.get(path)["ETag"] for path in (LIST, f"{LIST}/paris"))
    assert len(etags) == 8


def test_raw__changed_url_hides_it(viewer, row):
    with fake_snapshot(paris=FakeStatus("ok", raw="unreachable")):
        WorkspaceProxy.objects.update(url="https://other.example.com")  # without a signal
        status = status_in(viewer.get(f"{LIST}/paris"))
    assert (status["status"], status["since"]) == ("unknown", None)
    assert "raw" not in status
