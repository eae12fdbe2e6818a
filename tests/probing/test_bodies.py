from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import pytest

from proxyhealth.report import HealthReport
from tests.probing.asking import (
    BAD,
    DOWN,
    FLOODS,
    HEAD,
    LATE,
    NOT_JSON,
    OK,
    PROTOCOL,
    STATUS_CODE,
    TOO_LARGE,
    TRUNCATED,
    ask,
    ask_in_time,
    not_json,
    verdict,
)
from tests.support import servers
from tests.support.machine import at_most
from tests.support.servers import (
    Server,
    chunked,
    drip,
    flood,
    redirect,
    response,
    send,
    send_and_hold,
    send_and_reset,
)

# Status codes.


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("101 Switching Protocols", "unexpected status code 101: Switching Protocols"),
        ("201 Created", "unexpected status code 201: Created"),
        ("204 No Content", "unexpected status code 204: No Content"),
        ("206 Partial Content", "unexpected status code 206: Partial Content"),
        ("300 Multiple Choices", "unexpected status code 300: Multiple Choices"),
        ("301 Moved Permanently", "unexpected status code 301: Moved Permanently"),
        ("304 Not Modified", "unexpected status code 304: Not Modified"),
        ("400 Bad Request", "unexpected status code 400: Bad Request"),
        ("409 Conflict", "unexpected status code 409: Conflict"),
        ("500 Internal Server Error", "unexpected status code 500: Internal Server Error"),
        ("555", "unexpected status code 555"),
        ("999 What\x1b[31m?", "unexpected status code 999: What[31m?"),
        ("500 " + "x" * 5000, "unexpected status code 500: " + "x" * 171 + "…"),
    ],
)
def test_probe__status_other_than_200(status: str, message: str) -> None:
    with Server(send(response("", status=status))) as server:
        result = ask(server)
    assert (*verdict(result), result.report) == (*STATUS_CODE, HealthReport((message,)))
    assert result.latency is not None


@pytest.mark.parametrize("location", ["", "   "])
def test_probe__redirect_without_a_location(location: str) -> None:
    with Server(send(redirect(location))) as server:
        result = ask(server)
    assert verdict(result) == STATUS_CODE
    assert result.report.errors == ("unexpected status code 302: Found",)


def test_probe__does_not_wait_for_the_body_of_an_error() -> None:
    start = b"HTTP/1.1 500 Oops\r\nContent-Length: 99999999999\r\n\r\n"
    with Server(flood(b"x" * 65536, start=start)) as server, at_most(5):
        assert verdict(ask(server)) == STATUS_CODE
    with Server(send_and_hold(start)) as server, at_most(5):
        assert verdict(ask(server)) == STATUS_CODE


# Bodies that end too late, too early, or never.


@pytest.mark.parametrize(
    "script",
    [
        send_and_hold(HEAD + b"\r\n"),
        send_and_hold(HEAD + b"\r\n{}"),
        send_and_hold(response("{}", length=3)),
        send_and_hold(chunked(b"{}", end=b"")),
        send_and_hold(chunked(b"{}", end=b"0\r\n")),
        send_and_hold(chunked(b"{}", end=b"f")),
        drip(b"{}" + b" " * 99, 0.05, start=HEAD + b"\r\n"),
        drip(b"1\r\n \r\n" * 99, 0.05, start=chunked(end=b"")),
        drip(b"0" * 999, 0.05, start=chunked(end=b"")),
    ],
)
def test_probe__body_not_complete_in_time(script: servers.Script, timeout: float) -> None:
    with Server(script) as server:
        result = ask_in_time(server)
    assert verdict(result) == LATE
    assert result.report.errors == (f"{BAD}not complete within 0.4 s",)
    assert result.latency is not None
    assert result.latency >= timeout


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (send(response("{}", length=3)), "cut off after 2 bytes: the connection was closed"),
        (send(response("", length=3)), "cut off after 0 bytes: the connection was closed"),
        (send(response("{}", length="9" * 18)), "cut off after 2 bytes: the connection was closed"),
        (
            send(response("x" * 20_000, length=30_000)),
            "cut off after 20,000 bytes: the connection was closed",
        ),
        (send_and_reset(response("{}", length=3)), None),
        (send_and_reset(HEAD + b"\r\n{}"), None),
        (send_and_reset(chunked(b"{}", end=b"")), None),
        (send(chunked(b"{}", end=b"")), "cut off after 2 bytes: the connection was closed"),
        (send(chunked(b"{}")[:-9]), "cut off after 0 bytes: the connection was closed"),
        (send(chunked(end=b"5\r\n{}")), "cut off after 2 bytes: the connection was closed"),
        (send(chunked(end=b"")), "cut off after 0 bytes: the connection was closed"),
        (send(chunked(b"{}", end=b"0\r\n")), "cut off after 2 bytes: the connection was closed"),
    ],
)
def test_probe__body_cut_off(script: servers.Script, why: str | None) -> None:
    with Server(script) as server, at_most(5):
        result = ask(server)
    assert verdict(result) == TRUNCATED
    if why is not None:
        assert result.report.errors == (BAD + why,)
    else:
        assert result.report.errors[0].startswith(f"{BAD}cut off after ")
        assert result.report.errors[0].endswith("bytes: Connection reset by peer")
    assert result.latency is not None


def test_probe__content_length_too_small() -> None:
    with Server(send(response('{"errors": []}', length=5))) as server:
        result = ask(server)
    assert verdict(result) == NOT_JSON
    assert result.report.errors[0].startswith(f"{BAD}the body is not JSON (")


@pytest.mark.parametrize("script", FLOODS.values(), ids=FLOODS)
def test_probe__body_without_end(script: servers.Script) -> None:
    with Server(script) as server, at_most(5):
        result = ask(server)
    assert verdict(result) == TOO_LARGE
    assert result.report.errors[0] in (
        f"{BAD}more than 64 KiB",
        f"{BAD}more than 300 lines of headers and chunks",
        f"{BAD}more than 100 trailers",
    )


@pytest.mark.parametrize("start", [b"", b"1;"])
def test_probe__chunk_size_line_without_end(start: bytes) -> None:
    with Server(flood(b"0" * 65536, start=chunked(end=start))) as server, at_most(5):
        result = ask(server)
    assert verdict(result) == PROTOCOL
    assert result.report.errors[0].startswith(f"{DOWN}the chunks of the body are malformed while reading")


def test_probe__report_of_exactly_64_kib_is_ok() -> None:
    body = b'{"warnings": ["w"]}'.ljust(65536)
    for data in (response(body), chunked(body), response(body, length="")):
        with Server(send(data)) as server:
            assert verdict(ask(server)) == OK


def test_probe__report_over_64_kib_is_too_large() -> None:
    body = b'{"warnings": ["w"]}'.ljust(65537)
    for data in (response(body), chunked(body), response(body, length="")):
        with Server(send(data)) as server:
            result = ask(server)
        assert (*verdict(result), result.report.errors) == (*TOO_LARGE, (f"{BAD}more than 64 KiB",))


# Content encodings that the probe did not request.


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


REPORT = b'{"warnings": ["' + bytes(range(32, 92)).replace(b'"', b"") + b'"]}'
REPORT = REPORT.replace(b"\\", b"")


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(REPORT, mtime=0)),
        ("GZIP", gzip.compress(REPORT, mtime=0)),
        ("x-gzip", gzip.compress(REPORT, mtime=0)),
        ("deflate", zlib.compress(REPORT)),
        ("deflate", raw_deflate(REPORT)),
        ("identity", REPORT),
        ("", REPORT),
    ],
)
@pytest.mark.parametrize("form", [response, chunked])
def test_probe__reads_compressed_reports(encoding: str, body: bytes, form: Callable[[bytes], bytes]) -> None:
    data = form(body).replace(b"\r\n\r\n", f"\r\nContent-Encoding: {encoding}\r\n\r\n".encode(), 1)
    with Server(send(data)) as server:
        result = ask(server)
    assert verdict(result) == OK
    assert len(result.report.warnings) == 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_probe__bomb_is_too_large(encoding: str) -> None:
    bomb = (gzip.compress if encoding == "gzip" else zlib.compress)(b" " * 10_000_000)
    assert len(bomb) < 20_000
    with Server(send(response(bomb, f"Content-Encoding: {encoding}"))) as server:
        result = ask(server)
    assert (*verdict(result), result.report.errors) == (*TOO_LARGE, (f"{BAD}more than 64 KiB",))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("missing", [1, 4, 8, 30])
def test_probe__compressed_report_cut_off(encoding: str, missing: int) -> None:
    body = (gzip.compress if encoding == "gzip" else zlib.compress)(REPORT)[:-missing]
    for length in (len(body), ""):
        with Server(send(response(body, f"Content-Encoding: {encoding}", length=length))) as server:
            result = ask(server)
        assert verdict(result) == TRUNCATED
        assert result.report.errors == (f"{BAD}cut off after {len(body)} bytes of {encoding}",)


@pytest.mark.parametrize(
    ("encoding", "body", "why"),
    [
        ("gzip", b"{}", "the body is not valid gzip"),
        ("gzip", zlib.compress(b"{}"), "the body is not valid gzip"),
        ("deflate", b"<html>", "the body is not valid deflate"),
        (
            "gzip",
            gzip.compress(b"{}", mtime=0)[:-8] + b"\x00" * 8,
            "the body is not valid gzip",
        ),
        ("br", b"\x0b\x01\x80{}\x03", "the Content-Encoding br is not supported"),
        ("zstd", b"{}", "the Content-Encoding zstd is not supported"),
        (
            "gzip, gzip",
            gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0),
            "the Content-Encoding gzip, gzip is not supported",
        ),
        (
            "x" * 1000,
            b"{}",
            f"the Content-Encoding {'x' * 49}… is not supported",
        ),
    ],
)
def test_probe__unreadable_encoding(encoding: str, body: bytes, why: str) -> None:
    with Server(send(response(body, f"Content-Encoding: {encoding}"))) as server:
        result = ask(server)
    assert (*verdict(result), result.report.errors) == (*NOT_JSON, (not_json(why),))


def test_probe__ignores_bytes_after_the_compressed_body() -> None:
    body = gzip.compress(b"{}") + b"trailing garbage"
    with Server(send(response(body, "Content-Encoding: gzip"))) as server:
        assert verdict(ask(server)) == OK
