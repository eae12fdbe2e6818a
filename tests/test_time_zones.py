"""``USE_TZ = False``: the rows have local times without a time zone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from proxyhealth import health, tasks
from proxyhealth.api import inventory
from proxyhealth.models import WorkspaceProxy
from tests.support.api import LIST, REGIONS

pytestmark = pytest.mark.django_db

ADMIN = "/admin/proxyhealth/workspaceproxy/"


@pytest.fixture(autouse=True, params=["Asia/Tokyo", "America/Chicago", "UTC"])
def local_times(settings, request):
    settings.USE_TZ = False
    settings.TIME_ZONE = request.param


def assert_now(text):
    assert text.endswith("Z")
    assert abs(datetime.fromisoformat(text) - datetime.now(UTC)) < timedelta(minutes=1)


def test_rows__are_stored_without_a_time_zone(paris):
    paris.refresh_from_db()
    assert paris.created_at.tzinfo is None


def test_json__times_are_in_utc(admin_client, paris):
    body = admin_client.get(LIST).json()
    (proxy,) = body["regions"]
    for text in (proxy["created_at"], proxy["updated_at"], proxy["status"]["checked_at"]):
        assert_now(text)
    assert_now(body["snapshot"]["checked_at"])
    assert admin_client.get(f"{LIST}/paris").json() == proxy


def test_json__changes_are_dated(admin_client, paris):
    response = admin_client.get(REGIONS)
    assert response.status_code == 200
    assert response["Last-Modified"].endswith(" GMT")
    etag = response["ETag"]
    assert admin_client.get(REGIONS, headers={"If-None-Match": etag}).status_code == 304
    paris.display_name = "Paris 2"
    paris.save()
    (region,) = admin_client.get(REGIONS).json()["regions"]
    assert region["display_name"] == "Paris 2"
    assert abs(inventory.read().changed_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_python__status_has_the_values_of_the_row(paris):
    paris.refresh_from_db()
    (status,) = health.statuses_of(WorkspaceProxy.objects.active())
    assert status is health.health_status()[paris.pk], "equal rows need no copy"
    assert health.status_of(paris) == status
    assert status.proxy.created_at.tzinfo is not None
    assert health.status_of(WorkspaceProxy(name="new")).proxy.created_at is None


@pytest.mark.parametrize("path", [ADMIN, f"{ADMIN}health/", f"{ADMIN}add/"])
def test_admin__pages(admin_client, paris, path):
    response = admin_client.get(path)
    assert response.status_code == 200
    assert b"Stale." not in response.content


def test_admin__times_are_in_local_time(admin_client, paris):
    local = health.snapshot().checked_at.astimezone()  # Django sets the zone of the process to TIME_ZONE
    for path in (ADMIN, f"{ADMIN}health/"):
        assert f"data-ago>{local:%Y-%m-%d %H:%M:%S %Z}</time>" in admin_client.get(path).content.decode()
    text = admin_client.get(f"{ADMIN}{paris.pk}/change/").content.decode()
    paris.refresh_from_db()
    for moment in (paris.created_at, paris.updated_at):
        assert f"data-ago>{moment:%Y-%m-%d %H:%M:%S} {local:%Z}</time>" in text


def test_admin__saves_and_deletes(admin_client, paris, sent):
    path = f"{ADMIN}{paris.pk}"
    assert admin_client.post(f"{path}/change/", {"name": "paris", "version": "v3"}).status_code == 302
    assert admin_client.get(f"{path}/change/").status_code == 200
    assert admin_client.get(f"{path}/history/").status_code == 200
    assert admin_client.post(f"{path}/delete/", {"post": "yes"}).status_code == 302
    assert health.force_update().statuses == {}


def test_tasks__round_check_and_shard(paris, sent, serve):
    oslo = WorkspaceProxy.objects.create(name="oslo", url=serve().url)
    tasks.check_proxies.apply(([str(oslo.pk)],), throw=True)
    assert health.snapshot().by_name["oslo"].healthy
    tasks.check_all.apply((), {"gap": 1.0}, throw=True)
    snapshot = health.snapshot()
    assert (snapshot.outcomes, snapshot.stale) == ({"success": 2}, False)
    assert abs(snapshot.checked_at - datetime.now(UTC)) < timedelta(minutes=1)
    rows = [proxy.to_json() for proxy in WorkspaceProxy.objects.as_proxies()]
    assert_now(rows[0]["updated_at"])
    part = tasks.check_shard.apply((1, 0, snapshot.checked_at.isoformat(), rows), throw=True).get()
    assert part == {"shard": 0, "lost": "the round is over"}


def test_metrics__and_badge(client, paris):
    assert b"proxyhealth_snapshot_stale 0.0" in client.get("/metrics").content
