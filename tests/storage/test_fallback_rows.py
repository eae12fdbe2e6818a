"""The rows of the database from which the last confirmed statuses come."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

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


def test_fallback__one_query_by_index():
    add_fleet()
    with CaptureQueriesContext(connection) as captured:
        assert statuses_of(read()[0]) == BOTH
    (sql,) = [query["sql"] for query in captured]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET LOCAL enable_seqscan = off")  # the table is small
        cursor.execute(f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{sql}")
        plan = "\n".join(str(row[-1]) for row in cursor.fetchall())
    lookup = "(proxy_uuid=?)" if connection.vendor == "sqlite" else "Index Cond: (proxy_uuid ="
    assert plan.count(lookup) == 4, plan


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


@pytest.mark.parametrize("report", [[], "x", "{}", {"errors": "x", "warnings": [1, {}]}, 7])
def test_fallback__report_of_another_form(report):
    add("paris", "ok", report=report)
    assert read_one().report == HealthReport()


SPOILED = {
    "sqlite": [
        "transition SET at = 'rubbish' WHERE proxy_name = 'spoiled'",
        "workspaceproxy SET created_at = 'rubbish' WHERE name = 'spoiled'",
        "workspaceproxy SET name = x'ff' WHERE name = 'spoiled'",
    ],
    "postgresql": ["transition SET at = 'infinity' WHERE proxy_name = 'spoiled'"],
}


@pytest.mark.parametrize("change", SPOILED[connection.vendor])
def test_fallback__unreadable_row_hides_no_other(change):
    add_fleet()
    add("spoiled", "ok")
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE proxyhealth_{change}")
    snapshot, errors = read()
    assert statuses_of(snapshot) == BOTH
    assert len(errors) == 1


def test_fallback__row_that_was_deleted_and_restored():
    row = add("paris", "ok")
    id = row.pk
    row.delete()
    WorkspaceProxy.objects.create(id=id, name="paris", url="https://paris.example.com")
    assert read_one().status == "ok"


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Chicago"])
def test_fallback__without_time_zones(settings, zone):
    settings.USE_TZ, settings.TIME_ZONE = False, zone
    add("paris", "ok", at=EARLIER.astimezone().replace(tzinfo=None))
    assert read_one().since == EARLIER
