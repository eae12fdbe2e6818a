"""Polling with ETags, through the views."""

import gzip
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
from django.db import connection

from proxyhealth import health
from proxyhealth.api import inventory, listing
from proxyhealth.models import WorkspaceProxy
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.support.api import LIST, REGIONS
from tests.support.values import a_round, make_proxy, make_status


@pytest.mark.django_db
@pytest.mark.parametrize("path", [LIST, REGIONS, f"{LIST}/paris", f"{LIST}?status=unhealthy&limit=1"])
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_poll__304_until_a_row_changes(viewer, paris, path, coding):
    headers = {"Accept-Encoding": coding}
    first = viewer.get(path, headers=headers)
    assert first.status_code == 200
    again = viewer.get(path, headers={**headers, "If-None-Match": first["ETag"]})
    assert again.status_code == 304
    assert again["ETag"] == first["ETag"]
    assert viewer.head(path, headers={**headers, "If-None-Match": first["ETag"]}).status_code == 304
    head = viewer.head(path, headers=headers)
    assert (head["ETag"], head["Content-Length"]) == (first["ETag"], str(len(first.content)))

    paris.display_name = "Lutetia"
    paris.save()
    changed = viewer.get(path, headers={**headers, "If-None-Match": first["ETag"]})
    assert changed.status_code == 200
    assert changed["ETag"] != first["ETag"]
    body = gzip.decompress(changed.content) if coding == "gzip" else changed.content
    assert b"Lutetia" in body


@pytest.mark.django_db
def test_poll__round_changes_the_proxies_but_not_regions(viewer, paris):
    etags = {path: viewer.get(path)["ETag"] for path in (LIST, REGIONS)}
    health.force_update()
    assert viewer.get(LIST, headers={"If-None-Match": etags[LIST]}).status_code == 200
    assert viewer.get(REGIONS, headers={"If-None-Match": etags[REGIONS]}).status_code == 304


@pytest.mark.django_db
def test_last_modified__after_a_round_a_save_and_a_deletion(viewer, paris):
    def modified():
        return parsedate_to_datetime(viewer.get(REGIONS)["Last-Modified"])

    committed = health.snapshot().committed_at
    assert modified() == committed.replace(microsecond=0)
    WorkspaceProxy.objects.update(updated_at=committed - timedelta(days=1))
    assert modified() == committed.replace(microsecond=0)
    paris.deleted = True
    paris.save()
    assert modified() == paris.updated_at.replace(microsecond=0)


@pytest.mark.django_db
def test_etag__is_the_same_in_every_process(viewer, paris):
    before = viewer.get(LIST)["ETag"]
    for module in (reader, inventory, listing):
        module.forget()
    assert viewer.get(LIST)["ETag"] == before


@pytest.mark.django_db
def test_etag__with_gzip_middleware(viewer, paris, settings):
    settings.MIDDLEWARE = [
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.http.ConditionalGetMiddleware",
        *settings.MIDDLEWARE,
    ]
    first = viewer.get(LIST, headers={"Accept-Encoding": "gzip"})
    assert gzip.decompress(first.content).startswith(b'{"regions"'), "compressed once"
    headers = {"Accept-Encoding": "gzip", "If-None-Match": first["ETag"]}
    assert viewer.get(LIST, headers=headers).status_code == 304


@pytest.mark.django_db
def test_session__is_not_written(viewer, paris):
    with connection.execute_wrapper(_refuse_writes):
        response = viewer.get(LIST)
    assert "sessionid" not in response.cookies


def _refuse_writes(execute, sql, params, many, context):
    assert sql.lstrip().upper().startswith("SELECT"), sql
    return execute(sql, params, many, context)


def test_snapshot__has_the_time_of_its_commit():
    before = datetime.now(UTC)
    commit([make_status(make_proxy(), Status.OK)], take_token(), full_round=a_round())
    assert before <= reader.read().committed_at <= datetime.now(UTC)
