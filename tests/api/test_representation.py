"""The bytes and headers of responses, without a server or a database."""

import gzip
import hashlib
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
from django.test import RequestFactory

from proxyhealth.api.representation import Representation, accepts_gzip

LONG = b'{"regions":[' + b'"x",' * 100 + b'"x"]}'


def answer(representation, method="get", **headers):
    request = getattr(RequestFactory(), method)(
        "/", headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    return representation.response(request)


def test_etag__is_a_strong_hash_of_the_bytes():
    one, same, other = Representation(LONG), Representation(bytes(LONG)), Representation(LONG + b" ")
    assert answer(one)["ETag"] == answer(same)["ETag"] != answer(other)["ETag"]
    assert answer(one)["ETag"] == f'"{hashlib.blake2b(LONG, digest_size=16).hexdigest()}"'


def test_etag__of_the_compressed_bytes_differs():
    representation = Representation(LONG)
    assert answer(representation)["ETag"] != answer(representation, accept_encoding="gzip")["ETag"]


@pytest.mark.parametrize("coding", ["", "gzip"])
@pytest.mark.parametrize(
    "if_none_match",
    ["{plain}", "{gzip}", "W/{plain}", 'W/"other", {plain}', '"other",{gzip}', "*", " * "],
)
def test_if_none_match__of_the_current_etag_is_304(coding, if_none_match):
    representation = Representation(LONG, [datetime(2026, 1, 1, tzinfo=UTC)])
    fresh = answer(representation, accept_encoding=coding)
    tags = {
        "plain": answer(representation)["ETag"],
        "gzip": answer(representation, accept_encoding="gzip")["ETag"],
    }
    response = answer(representation, accept_encoding=coding, if_none_match=if_none_match.format(**tags))
    assert response.status_code == 304
    assert response.content == b""
    for header in ("ETag", "Last-Modified", "Cache-Control", "Vary"):
        assert response[header] == fresh[header]
    for header in ("Content-Encoding", "Content-Length", "Content-Type"):
        assert header not in response


@pytest.mark.parametrize("if_none_match", ["", '"other"', "other", 'W/"other"', '""', "**", "\x00", '"' * 50])
def test_if_none_match__of_another_etag_is_200(if_none_match):
    assert answer(Representation(LONG), if_none_match=if_none_match).content == LONG


def test_if_modified_since__is_ignored():
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    later = "Fri, 01 Jan 2027 00:00:00 GMT"
    assert answer(Representation(LONG, [moment]), if_modified_since=later).status_code == 200


@pytest.mark.parametrize("method", ["get", "head"])
def test_gzip__if_the_client_accepts_it(method):
    response = answer(Representation(LONG), method, accept_encoding="gzip, br")
    compressed = gzip.compress(LONG, 5, mtime=0)
    assert response["Content-Encoding"] == "gzip"
    assert response["Content-Length"] == str(len(compressed))
    assert response.content == (compressed if method == "get" else b"")
    assert gzip.decompress(compressed) == LONG


def test_gzip__not_for_small_bodies():
    response = answer(Representation(b'{"regions":[]}'), accept_encoding="gzip")
    assert "Content-Encoding" not in response
    assert response.content == b'{"regions":[]}'


@pytest.mark.parametrize(
    ("header", "accepted"),
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
def test_accepts_gzip__header_values(header, accepted):
    assert accepts_gzip(header) is accepted


def test_last_modified__is_the_latest_moment_but_not_future():
    past = datetime(2026, 1, 1, tzinfo=UTC)
    assert answer(Representation(LONG, [None, past - timedelta(1), past]))["Last-Modified"] == (
        "Thu, 01 Jan 2026 00:00:00 GMT"
    )
    ahead = answer(Representation(LONG, [datetime.now(UTC) + timedelta(hours=1)]))["Last-Modified"]
    assert parsedate_to_datetime(ahead) <= datetime.now(UTC)
    assert "Last-Modified" not in answer(Representation(LONG, [None]))
