"""Lists that turn stale: their bodies, their validators, and the reasons that every user may read."""

import json
import time
from contextlib import contextmanager
from dataclasses import replace
from email.utils import parsedate_to_datetime

import pytest
from django.db import OperationalError, connection

from proxyhealth import health
from proxyhealth.api import listing
from proxyhealth.api.query import EVERYTHING
from proxyhealth.storage import reader
from tests.support.api import LIST, REGIONS, signed_in
from tests.support.values import NOW

pytestmark = pytest.mark.django_db

PATHS = [LIST, REGIONS, f"{LIST}?status=unhealthy", f"{REGIONS}?healthy=false&limit=1", f"{REGIONS}?q=none"]

NOT_YET = "The regions have not been checked yet."
NOT_RECENTLY = "The regions have not been checked recently."
NOT_UPDATED = "The regions cannot be updated at the moment."


@pytest.fixture
def pass_time(monkeypatch):
    """``pass_time(seconds)`` sets the monotonic clock forward."""

    def forward(seconds):
        monotonic = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + seconds)

    return forward


@contextmanager
def failed_database():
    """Let the queries for proxies fail, but not those for sessions."""

    def refuse(execute, sql, *arguments):
        if "proxyhealth_workspaceproxy" in sql:
            raise OperationalError("secret host")
        return execute(sql, *arguments)

    with connection.execute_wrapper(refuse):
        yield


def modified(response):
    return parsedate_to_datetime(response["Last-Modified"])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_poll__list_turns_stale_without_a_round(viewer, paris, configure, pass_time, path, coding):
    configure(STALE_AFTER=600)
    health.force_update()
    headers = {"Accept-Encoding": coding}
    fresh = viewer.get(path, headers=headers)
    assert fresh["Proxyhealth-Stale"] == "false"
    again = viewer.get(path, headers={**headers, "If-None-Match": fresh["ETag"]})
    assert (again.status_code, again["Proxyhealth-Stale"]) == (304, "false")

    pass_time(600)
    stale = viewer.get(path, headers={**headers, "If-None-Match": fresh["ETag"]})
    assert (stale.status_code, stale["Proxyhealth-Stale"]) == (200, "true")
    assert stale["ETag"] != fresh["ETag"]
    assert modified(stale) >= modified(fresh)
    body = viewer.get(path).json()
    assert (body["stale"], bool(body["stale_reason"])) == (True, True)
    again = viewer.get(path, headers={**headers, "If-None-Match": stale["ETag"]})
    assert (again.status_code, again["Proxyhealth-Stale"]) == (304, "true")

    health.force_update()
    current = viewer.get(path, headers={**headers, "If-None-Match": stale["ETag"]})
    assert (current.status_code, current["Proxyhealth-Stale"]) == (200, "false")
    assert viewer.get(path).json()["stale"] is False
    if "regions" in path:  # the same bytes as before
        assert current["ETag"] == fresh["ETag"]


def test_last_modified__data_turns_stale_and_current(paris):
    def modified():
        return listing.current(now=True).select("regions", EVERYTHING).last_modified

    before = modified()
    with failed_database():
        during = modified()
        assert modified() == during
    # Django's ConditionalGetMiddleware compares it with the If-Modified-Since of clients that send no ETag.
    assert before < during < modified()


def test_regions__reason_before_the_first_round(paris, redis_client):
    redis_client.flushall()
    reader.forget()
    assert signed_in().get(REGIONS).json()["stale_reason"] == NOT_YET


def test_regions__reason_without_rounds(paris, configure, pass_time):
    configure(STALE_AFTER=600)
    health.force_update()
    client = signed_in()
    assert client.get(REGIONS).json()["stale_reason"] == ""
    pass_time(600)
    assert client.get(REGIONS).json()["stale_reason"] == NOT_RECENTLY


@pytest.mark.parametrize("cause", ["offline", "refusal", "error"])
def test_regions__reason_has_no_error_of_a_round(paris, cause):
    snapshot = replace(health.snapshot(), stale_at=NOW, fresh_until=None, **{cause: "secret host"})
    parts = listing.Parts.read()._replace(snapshot=snapshot, stale_reason=snapshot.stale_reason)
    body = json.loads(listing.Listing(parts).select("regions", EVERYTHING).body)
    assert (body["stale"], body["stale_reason"]) == (True, NOT_RECENTLY)


def test_regions__reason_while_redis_is_down(paris, stopped):
    client = signed_in()
    client.get(REGIONS)
    stopped()
    body = client.get(REGIONS).json()
    assert (body["stale_reason"], len(body["regions"])) == (NOT_UPDATED, 1)


def test_regions__reason_while_the_database_is_down(viewer, paris):
    viewer.get(REGIONS)
    with failed_database():
        assert "secret host" in viewer.get(LIST).json()["stale_reason"]
        assert viewer.get(REGIONS).json()["stale_reason"] == NOT_UPDATED


def test_proxies__both_fields_agree_with_the_snapshot(viewer, paris, redis_client):
    for _ in range(2):
        body = viewer.get(LIST).json()
        assert body["stale"] is body["snapshot"]["stale"]
        assert body["stale_reason"] == body["snapshot"]["stale_reason"]
        redis_client.flushall()
    assert body["stale"] is True
