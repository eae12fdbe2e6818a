from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.probing.asking import (
    DOWN,
    HEAD,
    PROTOCOL,
    WAITING,
    ask,
    ask_in_time,
    verdict,
)
from tests.support import servers
from tests.support.machine import at_most
from tests.support.servers import (
    Server,
    drip,
    flood,
    response,
    send,
    send_and_hold,
)

# Not HTTP.

HTTP2_SETTINGS = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"
TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x0a"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<html>hello</html>", r"the response is not HTTP: it begins with '<html>hello</html>'"),
        (b"{}", "the response is not HTTP: it begins with '{}'"),
        (b"\r\n\r\n", r"the response is not HTTP: it begins with '\r\n\r\n'"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", r"the response is not HTTP: it begins with 'SSH-2.0-OpenSSH_9.6\r\n'"),
        (b"220 mail ESMTP\r\n", r"the response is not HTTP: it begins with '220 mail ESMTP\r\n'"),
        (b"\x00" * 5000, "the response is not HTTP: it begins with '" + r"\x00" * 64 + "'"),
        (b"\0\0\x12\x04" + b"\0" * 23, r"the response is not HTTP: it begins with '\x00\x00\x12\x04"),
        (b"\0\0\0\x04\0\0\0\0\0", r"the response is not HTTP: it begins with '\x00\x00\x00\x04"),
        (HTTP2_SETTINGS, "the response is not HTTP: it begins with '" + r"\x00\x00\x06\x04"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "the response is not HTTP: it begins with 'PRI * HTTP/2.0"),
        (
            TLS_ALERT,
            (
                r"the response is not HTTP: it begins with '\x15\x03\x01\x00\x02\x02\n'; "
                "the server speaks TLS, should the URL begin with https://?"
            ),
        ),
        (b"HTTPS/1.1 200 OK\r\n\r\n{}", "the response is not HTTP: it begins with 'HTTPS/1.1 200 OK"),
        (b"http/1.1 200 OK\r\n\r\n{}", "the response is not HTTP: it begins with 'http/1.1 200 OK"),
        (b"HTTP/2 200\r\n\r\n{}", "the response is not HTTP/1.1: it begins with 'HTTP/2'"),
        (b"HTTP/2.0 200 OK\r\n\r\n{}", "the response is not HTTP/1.1: it begins with 'HTTP/2.0'"),
        (b"HTTP/1.1\r\n\r\n{}", r"the response is not HTTP: it begins with 'HTTP/1.1\r\n'"),
        (b"HTTP/1.1 abc\r\n\r\n{}", r"the response is not HTTP: it begins with 'HTTP/1.1 abc\r\n'"),
        (b"HTTP/1.1 20 OK\r\n\r\n{}", r"the response is not HTTP: it begins with 'HTTP/1.1 20 OK\r\n'"),
        (b"HTTP/1.1 1000 OK\r\n\r\n{}", r"the response is not HTTP: it begins with 'HTTP/1.1 1000 OK\r\n'"),
        (b"HTTP/1.1 -200 OK\r\n\r\n{}", r"the response is not HTTP: it begins with 'HTTP/1.1 -200 OK\r\n'"),
        (b"HTTP/1.1 " + b"9" * 5000 + b"\r\n\r\n", "the response is not HTTP: it begins with 'HTTP/1.1 999"),
    ],
)
@pytest.mark.parametrize("then", [send, send_and_hold])
def test_probe__bytes_that_are_not_http(
    data: bytes, why: str, then: Callable[[bytes], servers.Script]
) -> None:
    with Server(then(data)) as server, at_most(5):
        result = ask(server)
    assert verdict(result) == PROTOCOL
    assert result.report.errors[0].startswith(DOWN + why)
    assert ("HTTP/2, but the probe needs HTTP/1.1" in result.report.errors[0]) == (data[3:4] == b"\x04")
    assert len(result.report.errors[0]) < 500
    assert result.latency is None


@pytest.mark.parametrize(
    ("data", "hint"),
    [(HTTP2_SETTINGS, "the server speaks only HTTP/2"), (TLS_ALERT, "the server speaks TLS")],
)
def test_probe__knows_other_protocols_by_pieces(data: bytes, hint: str) -> None:
    with Server(drip(data, 0.005)) as server:
        result = ask_in_time(server)
    assert verdict(result) == PROTOCOL
    assert f"; {hint}" in result.report.errors[0]


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        (["Content-Length: 2", "Content-Length: 3"], f"different values of Content-Length {WAITING}"),
        (["Content-Length: 3", "Content-Length: 2"], f"different values of Content-Length {WAITING}"),
        (["Content-Length: -1"], f"Content-Length is not a number of bytes {WAITING}"),
        (["Content-Length: +2"], f"Content-Length is not a number of bytes {WAITING}"),
        (["Content-Length: 2, 3"], f"Content-Length is not a number of bytes {WAITING}"),
        (["Content-Length: two"], f"Content-Length is not a number of bytes {WAITING}"),
        (["Content-Length:"], f"Content-Length is not a number of bytes {WAITING}"),
        (["Content-Length: 2_0"], f"Content-Length is not a number of bytes {WAITING}"),
        (
            ["Content-Length: " + "9" * 5000],
            f"Content-Length is not a number of bytes {WAITING}",
        ),
        (["no colon"], f"malformed header line {WAITING}"),
        (["Content-Length : 2"], f"malformed header line {WAITING}"),
        (["Transfer-Encoding: gzip, chunked"], f"Transfer-Encoding is not chunked {WAITING}"),
        (["Transfer-Encoding: identity"], f"Transfer-Encoding is not chunked {WAITING}"),
        ([f"X-{i}: y" for i in range(200)], f"got more than 100 headers {WAITING}"),
        (["X: " + "y" * 1_000_000], f"more than 64 KiB of headers {WAITING}"),
        (["X: " + "y" * 9000] * 90, f"more than 64 KiB of headers {WAITING}"),
    ],
)
def test_probe__invalid_headers(headers: list[str], why: str) -> None:
    with Server(send_and_hold(response("{}", *headers, length=""))) as server, at_most(5):
        result = ask(server)
    assert (*verdict(result), result.report.errors) == (*PROTOCOL, (DOWN + why,))


@pytest.mark.parametrize(
    "script",
    [
        flood(b"y" * 65536, start=b"HTTP/1.1 200 " + b"x" * 100),
        flood(b"y" * 65536, start=HEAD + b"X: "),
        flood(b"X: y\r\n" * 1000, start=HEAD),
        flood(b" folded\r\n" * 1000, start=HEAD),
        flood(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        flood(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
    ],
)
def test_probe__headers_without_end(script: servers.Script) -> None:
    with Server(script) as server, at_most(5):
        result = ask(server)
    assert verdict(result) == PROTOCOL
    assert result.report.errors[0] in (
        f"{DOWN}more than 64 KiB of headers {WAITING}",
        f"{DOWN}got more than 100 headers {WAITING}",
        f"{DOWN}more than 300 lines of headers and chunks {WAITING}",
        f"{DOWN}malformed header line {WAITING}",  # a folded one
    )
