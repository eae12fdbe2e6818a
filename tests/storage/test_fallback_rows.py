"""The rows of the database from which the last confirmed statuses come."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection

from proxyhealth.models import WorkspaceProxy
from proxyhealth.report import HealthReport
from proxyhealth.statuses import Reason, Status
from proxyhealth.storage import fallback
from tests.support.confirmed import BOTH, EARLIER, LAST_ROUND, add, add_fleet, end_round, statuses_of

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def last_round(sent):
    end_round()


def read():
    """Return what the thread of a read would, which does not see the transaction of this test."""
    rows, errors = WorkspaceProxy.objects.active().with_last_transition()
    return fallback._snapshot_of(rows), errors


def read_one():
    (status,) = read()[0].statuses.values()
    return status


def test_fallback__one_query(django_assert_num_queries):
    add_fleet()
    with django_assert_num_queries(1):
        assert statuses_of(read()[0]) == BOTH


def test_fallback__proxies_without_a_status_are_absent():
    add("kept", "ok")
    add("new")
    add("back", "ok", "removed")
    add("deleted", "ok")
    WorkspaceProxy.objects.filter(name="deleted").update(deleted=True)
    add("gone", "ok").delete()
    assert statuses_of(read()[0]) == {"kept": "ok"}


def test_fallback__status_of_another_url_is_absent():
    add("unregistered", "unregistered", url="")
    add("registered", "unregistered")
    add("emptied", "ok", url="")
    add("invalid", "unhealthy", url="ftp://x", reason="invalid_url")
    add("corrected", "unhealthy", reason="invalid_url")
    add("spoiled", "ok", url="ftp://x")
    assert statuses_of(read()[0]) == {"invalid": "unhealthy", "unregistered": "unregistered"}


def test_fallback__check_after_the_last_round():
    later = LAST_ROUND + timedelta(seconds=5)
    add("paris", "ok", at=later)
    status = read_one()
    assert (status.since, status.checked_at) == (later, later)


def test_fallback__status_of_a_newer_version():
    add("paris", "degraded", reason="tired")
    status = read_one()
    assert (status.status, status.reason) == (Status.UNKNOWN, Reason.NONE)


@pytest.mark.parametrize("report", ["[]", '"x"', '{"errors": "x", "warnings": [1, {}]}', "null"])
def test_fallback__report_of_another_form(report):
    add("paris", "ok")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE proxyhealth_transition SET report = %s", [report])
    assert read_one().report == HealthReport()


@pytest.mark.parametrize(
    "change",
    [
        "proxyhealth_transition SET at = 'rubbish' WHERE proxy_name = 'spoiled'",
        "proxyhealth_workspaceproxy SET created_at = 'rubbish' WHERE name = 'spoiled'",
        "proxyhealth_workspaceproxy SET name = x'ff' WHERE name = 'spoiled'",
    ],
)
def test_fallback__unreadable_row_hides_no_other(change):
    add_fleet()
    add("spoiled", "ok")
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {change}")
    snapshot, errors = read()
    assert statuses_of(snapshot) == BOTH
    assert len(errors) == 1


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Chicago"])
def test_fallback__without_time_zones(settings, zone):
    settings.USE_TZ, settings.TIME_ZONE = False, zone
    add("paris", "ok", at=EARLIER.astimezone().replace(tzinfo=None))
    assert read_one().since == EARLIER
