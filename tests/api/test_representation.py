import gzip
import hashlib
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
from django.db import connection
from django.test import RequestFactory

from proxyhealth import health
from proxyhealth.api import inventory, listing
from proxyhealth.api.representation import Representation, accepts_gzip
from proxyhealth.models import WorkspaceProxy
from proxyhealth.statuses import Status
from proxyhealth.storage import reader
from proxyhealth.storage.commit import commit
from proxyhealth.storage.lease import take_token
from tests.support.api import LIST, REGIONS
from tests.support.values import a_round, make_proxy, make_status

LONG = b'{"regions":[' + b'"x",' * 100 + b'"x"]}'


def answer(representation, method="get", **headers):
    request = getattr(RequestFactory(), method)(
        "/", headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    return representation.response(request)


def test_etag__is_strong_and_that_of_the_bytes():
    one, same, other = Representation(LONG), Representation(bytes(LONG)), Representation(LONG + b" ")
    assert answer(one)["ETag"] == answer(same)["ETag"] != answer(other)["ETag"]
    assert answer(one)["ETag"] == f'"{hashlib.blake2b(LONG, digest_size=16).hexdigest()}"'


def test_etag__of_the_compressed_bytes_is_another_one():
    representation = Representation(LONG)
    assert answer(representation)["ETag"] != answer(representation, accept_encoding="gzip")["ETag"]


@pytest.mark.parametrize("coding", ["", "gzip"])
@pytest.mark.parametrize(
    "known",
    ["{plain}", "{gzip}", "W/{plain}", 'W/"other", {plain}', '"other",{gzip}', "*", " * "],
)
def test_if_none_match__with_what_is_there_is_304(coding, known):
    representation = Representation(LONG, [datetime(2026, 1, 1, tzinfo=UTC)])
    fresh = answer(representation, accept_encoding=coding)
    tags = {
        "plain": answer(representation)["ETag"],
        "gzip": answer(representation, accept_encoding="gzip")["ETag"],
    }
    response = answer(representation, accept_encoding=coding, if_none_match=known.format(**tags))
    assert response.status_code == 304
    assert response.content == b""
    for header in ("ETag", "Last-Modified", "Cache-Control", "Vary"):
        assert response[header] == fresh[header]
    for header in ("Content-Encoding", "Content-Length", "Content-Type"):
        assert header not in response


@pytest.mark.parametrize("known", ["", '"other"', "other", 'W/"other"', '""', "**", "\x00", '"' * 50])
def test_if_none_match__with_something_else_is_200(known):
    assert answer(Representation(LONG), if_none_match=known).content == LONG


def test_if_modified_since__is_not_enough():
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    later = "Fri, 01 Jan 2027 00:00:00 GMT"
    assert answer(Representation(LONG, [moment]), if_modified_since=later).status_code == 200


@pytest.mark.parametrize("method", ["get", "head"])
def test_gzip__when_asked_for(method):
    response = answer(Representation(LONG), method, accept_encoding="gzip, br")
    compressed = gzip.compress(LONG, 5, mtime=0)
    assert response["Content-Encoding"] == "gzip"
    assert response["Content-Length"] == str(len(compressed))
    assert response.content == (compressed if method == "get" else b"")
    assert gzip.decompress(compressed) == LONG


def test_gzip__not_when_there_is_nothing_to_gain():
    response = answer(Representation(b'{"regions":[]}'), accept_encoding="gzip")
    assert "Content-Encoding" not in response
    assert response.content == b'{"regions":[]}'


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("", False),
        ("identity", False),
        ("gzip", True),
        ("GZip", True),
        ("x-gzip", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("gzip;q=0.001", True),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("br, *;q=0.1", True),
        ("gzip;level=9", False),
        ("gzip;q=2", False),
        ("not gzip", False),
        ("ungzip", False),
        (",,", False),
    ],
)
def test_accepts_gzip(header, wanted):
    assert accepts_gzip(header) is wanted


def test_last_modified__is_the_latest_moment_and_never_in_the_future():
    past = datetime(2026, 1, 1, tzinfo=UTC)
    assert answer(Representation(LONG, [None, past - timedelta(1), past]))["Last-Modified"] == (
        "Thu, 01 Jan 2026 00:00:00 GMT"
    )
    ahead = answer(Representation(LONG, [datetime.now(UTC) + timedelta(hours=1)]))["Last-Modified"]
    assert parsedate_to_datetime(ahead) <= datetime.now(UTC)
    assert "Last-Modified" not in answer(Representation(LONG, [None]))


# Through the views


@pytest.mark.django_db
@pytest.mark.parametrize("path", [LIST, REGIONS, f"{LIST}/paris", f"{LIST}?status=unhealthy&limit=1"])
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_round_trip__200_304_and_200_again_after_a_change(viewer, paris, path, coding):
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
def test_round_trip__a_round_changes_the_details_and_not_the_regions(viewer, paris):
    lists = {path: viewer.get(path)["ETag"] for path in (LIST, REGIONS)}
    health.force_update()
    assert viewer.get(LIST, headers={"If-None-Match": lists[LIST]}).status_code == 200
    assert viewer.get(REGIONS, headers={"If-None-Match": lists[REGIONS]}).status_code == 304


@pytest.mark.django_db
def test_round_trip__a_snapshot_that_turns_stale_is_another_one(viewer, paris, configure, monkeypatch):
    configure(STALE_AFTER=600)
    health.force_update()
    fresh = viewer.get(LIST)
    assert fresh["Proxyhealth-Stale"] == "false"
    headers = {"If-None-Match": fresh["ETag"]}
    assert viewer.get(LIST, headers=headers).status_code == 304
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 600)
    assert viewer.get(LIST, headers=headers).status_code == 200
    stale = viewer.get(LIST)
    assert stale["Proxyhealth-Stale"] == "true"
    assert stale.json()["snapshot"]["stale"] is True
    # The regions say it beside their body, which is as it was.
    assert viewer.get(REGIONS)["Proxyhealth-Stale"] == "true"


@pytest.mark.django_db
def test_last_modified__of_a_round_of_a_row_and_of_a_removal(viewer, paris):
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
def test_etag__under_a_host_that_compresses_by_itself(viewer, paris, settings):
    settings.MIDDLEWARE = [
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.http.ConditionalGetMiddleware",
        *settings.MIDDLEWARE,
    ]
    first = viewer.get(LIST, headers={"Accept-Encoding": "gzip"})
    assert gzip.decompress(first.content).startswith(b'{"regions"'), "compressed once"
    known = {"Accept-Encoding": "gzip", "If-None-Match": first["ETag"]}
    assert viewer.get(LIST, headers=known).status_code == 304


@pytest.mark.django_db
def test_session__is_read_and_not_written(viewer, paris):
    with connection.execute_wrapper(_refuse_writes):
        response = viewer.get(LIST)
    assert "sessionid" not in response.cookies


def _refuse_writes(execute, sql, params, many, context):
    assert sql.lstrip().upper().startswith("SELECT"), sql
    return execute(sql, params, many, context)


def test_snapshot__knows_when_it_was_committed():
    before = datetime.now(UTC)

    commit([make_status(make_proxy(), Status.OK)], take_token(), full_round=a_round())
    assert before <= reader.read().committed_at <= datetime.now(UTC)
