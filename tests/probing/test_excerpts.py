"""The text of a server in error messages: clean, short, and read without a wait."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest

from proxyhealth.probing.excerpts import MAX_EXCERPT, excerpt
from tests.probing.asking import BAD, BAD_REPORT, HINT, NOT_JSON, STATUS_CODE, ask, verdict
from tests.support import servers
from tests.support.machine import at_most
from tests.support.servers import (
    Script,
    Server,
    chunked,
    drip,
    flood,
    response,
    send,
    send_and_hold,
    send_and_reset,
)

ERROR = '{"message": "Unexpected host.", "detail": "It must be paris.example."}'
PAGE = """<!DOCTYPE html>
<html><head><title>502 Bad Gateway</title><style>p { color: red }</style></head>
<body><!-- hidden > --><script>alert("<p>")</script>
<h1>No&nbsp;server is&#32;available</h1><p class="b">Try&#27;[31m again&lt;1&gt;.</p></body></html>"""


def message_of(script: Script) -> str:
    with Server(script) as server, at_most(5):
        result = ask(server)
    assert verdict(result) == STATUS_CODE
    (message,) = result.report.errors
    assert len(message) < 1000
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in message)
    return message


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (ERROR, "Unexpected host. It must be paris.example."),
        ('{"detail": "d", "Message": "m"}', "m d"),
        ('{"error": {"code": 5, "message": "m"}}', "m"),
        ('{"error": "e", "error_description": "d"}', "e d"),
        ('{"errors": ["a", "b"], "warnings": []}', "a b"),
        ('{"title": "t", "status": 400, "detail": "d"}', "t d"),
        ('{"message": "m", "detail": "m"}', "m"),
        ('{"detail": [{"loc": ["query"], "msg": "m", "type": "missing"}]}', "m"),
        ('{"errors": [{"message": "m", "path": []}, {"title": "t"}]}', "m t"),
        ('{"Error": {"Description": "d", "errorMessage": "m"}}', "m d"),
        ('{"message": " "}', '{"message": " "}'),
        ('{"message": null, "detail": []}', '{"message": null, "detail": []}'),
        ('{"code": 5}', '{"code": 5}'),
        ('"only text"', "only text"),
        (r'{"message": "a\u001b[31m\u0000b\ud800\u202ec\nd"}', "a[31mbc d"),
        ('{"message": "' + "x" * 5000 + '"}', '{"message": "' + "x" * (MAX_EXCERPT - 14) + "…"),
        ('{"message": "' + "x" * 1000 + '"}', "x" * (MAX_EXCERPT - 1) + "…"),
        ("[" * 3000 + "]" * 3000, "[" * (MAX_EXCERPT - 1) + "…"),
        ("9" * 4000, "9" * (MAX_EXCERPT - 1) + "…"),
        ("a\u061c\u200e\u2067b", "ab"),
        ("plain\r\n  text\x1b[2J\u202e\x00"[:-1], "plain text[2J"),
        ("1 < 2 & 3 > 2 &amp;", "1 < 2 & 3 > 2 &amp;"),
        (PAGE, "502 Bad Gateway No server is available Try[31m again<1>."),
        ("<p>a<script>b", "a"),
        ("<p>a<!-- b", "a"),
        ("<p>a<b", "a"),
        ("<" * 5000, ""),
        ("", ""),
        (" \r\n", ""),
        (b"\x89PNG\r\n\x1a\n\x00\x00", ""),
        (b"\xff\xfe" * 50, ""),
        ("x\ud83d".encode("utf-16-le", "surrogatepass"), ""),
        ("é" * 3000, "é" * (MAX_EXCERPT - 1) + "…"),
        ("\ufeff" + ERROR, "Unexpected host. It must be paris.example."),
    ],
)
def test_excerpt__of_a_body(body: str | bytes, says: str) -> None:
    content = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    assert excerpt(content) == says


@pytest.mark.parametrize(
    ("charset", "encoding"),
    [
        ("iso-8859-1", "latin-1"),
        ("Windows-1252", "cp1252"),
        ('"iso-8859-15"', "iso8859-15"),
        ("utf-16le", "utf-16-le"),
        ("UTF-16", "utf-16"),
        ("utf-8", "utf-8"),
        ("iso-8859-12", "utf-8"),  # it does not exist
        ("idna", "utf-8"),
        ("unicode_escape", "utf-8"),
        ("zlib", "utf-8"),
    ],
)
def test_excerpt__of_a_declared_charset(charset: str, encoding: str) -> None:
    page = "<p>Accès refusé à la région"
    assert excerpt(page.encode(encoding), f"text/html; Charset={charset}") == page[3:]


@pytest.mark.parametrize("charset", ["windows-1251", "koi8-r", "shift_jis", "gb2312", "big5", "euc-kr"])
def test_excerpt__of_any_bytes_in_a_charset(charset: str) -> None:
    for body in (bytes(range(1, 256)) * 20, b"\xff" * 5000, b"<" + b"\x81" * 5000):
        assert len(excerpt(body, f"text/html; charset={charset}")) <= MAX_EXCERPT


@pytest.mark.parametrize(
    "body",
    [
        b"<script" * 10_000,
        b"<!--" * 10_000,
        b"< " * 10_000,
        b"<p>" + b"&" * 60_000,
        b"<p>" + b"&#" + b"9" * 60_000,
        b'{"a":' * 10_000,
        b"[" * 60_000,
        b'{"message":[' * 300 + b"]}" * 300,
        b" " * 60_000,
        b"\x1b" * 60_000,
    ],
)
def test_excerpt__of_a_hostile_body_is_fast(body: bytes) -> None:
    with at_most(1):
        for _ in range(5):
            assert len(excerpt(body)) <= MAX_EXCERPT
            assert len(excerpt(body[:4096])) <= MAX_EXCERPT


def test_error__shows_body_and_server() -> None:
    data = response(ERROR, "Server: nginx/1.25", status="400 Bad Request")
    assert message_of(send(data)) == (
        "unexpected status code 400: Bad Request; its header Server is nginx/1.25; "
        "the body says “Unexpected host. It must be paris.example.”"
    )


@pytest.mark.parametrize(
    ("code", "sender"),
    [
        (403, "a firewall or an access list in front of the proxy"),
        (404, "a server that is not a workspace proxy"),
        (421, "a server that is not configured for this host name"),
        (426, "perhaps HTTP/2"),
        (464, "an AWS load balancer"),
        (502, "a load balancer that cannot connect to the proxy behind it"),
        (503, "a load balancer without a healthy server behind it"),
        (504, "a load balancer that gets no response in time"),
        (525, "Cloudflare"),
    ],
)
def test_error__says_what_usually_sends_it(code: int, sender: str) -> None:
    message = message_of(send(response("", status=f"{code} X")))
    assert message.startswith(f"unexpected status code {code}: X; this usually comes from ")
    assert sender in message


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_error__reads_compressed_bodies(compress: object) -> None:
    body = compress(ERROR.encode())  # type: ignore[operator]
    encoding = "gzip" if compress is gzip.compress else "deflate"
    for part in (body, body[:-3]):
        data = response(part, f"Content-Encoding: {encoding}", status="400 X", length="")
        assert "“Unexpected host." in message_of(send(data)) or part is not body
    assert message_of(send(response(body, "Content-Encoding: br", status="400 X"))).endswith("400: X")
    assert message_of(send(response(b"x", f"Content-Encoding: {encoding}", status="400 X"))).endswith(
        "400: X"
    )
    bomb = compress(b"x" * 10_000_000)  # type: ignore[operator]
    data = response(bomb, f"Content-Encoding: {encoding}", status="400 X")
    assert message_of(send(data)).endswith("x…”")


def error(data: bytes) -> bytes:
    return data.replace(b" 200 OK", b" 500 Oops", 1)


PARTS = {
    "no body": (send_and_hold(error(response("", length=9))), ""),
    "part, then silence": (send_and_hold(error(response("half", length=9))), "half"),
    "part, then the end": (send(error(response("half", length=9))), "half"),
    "part, then a reset": (send_and_reset(error(response("half", length=9))), "half"),
    "chunks": (send_and_hold(error(chunked(b"ha", b"lf"))), "half"),
    "chunk, then silence": (send_and_hold(error(chunked(b"ha", b"lf", end=b""))), "half"),
    "chunk, then nonsense": (send_and_hold(error(chunked(b"ha", b"lf", end=b"x\r\n"))), "half"),
    "chunk without its end": (send_and_hold(error(chunked(end=b"4\r\nhalf"))), "half"),
}


@pytest.mark.parametrize("name", PARTS)
def test_error__shows_the_part_that_arrives(name: str) -> None:
    script, says = PARTS[name]
    with at_most(1.5):
        message = message_of(script)
    assert message == "unexpected status code 500: Oops" + (f"; the body says “{says}”" if says else "")


def test_error__does_not_wait_for_a_slow_body() -> None:
    script = drip(b"y" * 999, 0.1, start=error(response("x", length=9999)))
    with at_most(1.5):
        message = message_of(script)
    assert message.startswith("unexpected status code 500: Oops; the body says “xy")


def test_error__waits_only_until_the_deadline(timeout: float) -> None:
    script = servers.after(timeout * 0.8, send_and_hold(error(response("half", length=9))))
    with at_most(timeout + 0.5):
        message = message_of(script)
    assert message == "unexpected status code 500: Oops; the body says “half”"


@pytest.mark.parametrize("data", [b"x", b"<script>", b"\x1b[31m", b"[", b"\xff", b"\0"])
def test_error__body_without_end(data: bytes) -> None:
    message_of(flood(data * 8192, start=b"HTTP/1.1 500 Oops\r\n\r\n"))


def test_error__body_of_tiny_chunks_without_end() -> None:
    start = error(chunked(end=b""))
    assert "says “xxx" in message_of(flood(b"1\r\nx\r\n" * 1000, start=start))


def test_error__server_header_is_clean_and_limited() -> None:
    message = message_of(send(response("", "Server: \x1b[31m" + "y" * 5000, status="500 Oops")))
    assert message == f"unexpected status code 500: Oops; its header Server is [31m{'y' * 95}…"


def test_error__shows_all_server_headers() -> None:
    message = message_of(send(response("", "Server: nginx", "Server: envoy", status="500 Oops")))
    assert message == "unexpected status code 500: Oops; its header Server is nginx, envoy"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"errors": "down", "message": "m"}', "m down"),
        ('{"errors": {"message": "m"}}', "m"),
        ("[]", "[]"),
        ("[" * 30_000 + "]" * 30_000, "[" * (MAX_EXCERPT - 1) + "…"),
    ],
)
def test_bad_report__shows_body_and_server(body: str, says: str) -> None:
    with Server(send(response(body, "Server: nginx"))) as server:
        result = ask(server)
    assert verdict(result) == BAD_REPORT
    assert result.report.errors[0].startswith(BAD)
    assert result.report.errors[0].endswith(f"; its header Server is nginx; the body says “{says}”")


def test_not_json__shows_the_text_of_a_page_and_server() -> None:
    with Server(send(response(PAGE, "Server: nginx", content_type="text/html"))) as server:
        result = ask(server)
    assert verdict(result) == NOT_JSON
    assert result.report.errors[0] == (
        f"{BAD}the body is not JSON (Expecting value: line 1 column 1 (char 0)); the body says "
        "“502 Bad Gateway No server is available Try[31m again<1>.”; its content type is text/html; "
        f"its header Server is nginx. {HINT}"
    )


def test_error__json_of_another_encoding_is_not_shown() -> None:
    body = json.dumps({"message": "m"}).encode("utf-16")
    assert message_of(send(response(body, status="500 Oops"))) == "unexpected status code 500: Oops"
