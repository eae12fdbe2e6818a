"""A response that can be read in two ways is never ``ok``: it is ``protocol``."""

from __future__ import annotations

import gzip
import socket

import pytest

from tests.probing.asking import DOWN, LATE, NOT_JSON, OK, PROTOCOL, TRUNCATED, WAITING, ask, verdict
from tests.support.servers import Server, chunked, response, send, send_and_hold

CHUNKS = b"2\r\n{}\r\n0\r\n\r\n"


def with_headers(*headers: bytes, body: bytes = b"{}", version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join([version + b" 200 OK", *headers, b"", body])


def judge(data: bytes) -> tuple[object, str]:
    with Server(send_and_hold(data)) as server:
        result = ask(server)
    return verdict(result), " ".join(result.report.errors)


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.1 +200 OK",
        b"HTTP/1.1 0200 OK",
        b"HTTP/1.1 2_00 OK",
        b"HTTP/1.1 200.0 OK",
        b"HTTP/1.1 200OK",
        b"HTTP/1.1 200\tOK",
        b"HTTP/1.1\t200 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 \x0b200 OK",
        b"HTTP/1.1\x85200 OK",
        b"HTTP/1.1 200\xa0OK",
        b"HTTP/0.9 200 OK",
        b"HTTP/1.x 200 OK",
        b"HTTP/1.11 200 OK",
        b"HTTP/1. 200 OK",
        b"HTTP/1 200 OK",
        b"HTTP/01.1 200 OK",
        b"HTTP/+1.1 200 OK",
        b"HTTP/ 1.1 200 OK",
        b"HTTP/1.1 200 O\0K",
        b"HTTP/1.1 200 O\rK",
    ],
)
def test_ambiguous__status_line(line: bytes) -> None:
    result, message = judge(line + b"\r\nContent-Length: 2\r\n\r\n{}")
    assert result == PROTOCOL
    assert message.startswith(f"{DOWN}the response is not HTTP")


@pytest.mark.parametrize(
    "line",
    [
        b"From x y",
        b"From x: y",
        b">From x",
        b"X y: z",
        b"X@y: z",
        b"X\ty: z",
        b"X : y",
        b" X: y",
        b"\xc3\xa9: y",
        b"X\0: y",
        b"(X): y",
        b": y",
        b":",
        b"X",
        b"X: a\0b",
        b"X: a\rb",
        b"X: a\r",
        b"X: a\nb",
        b"X: a\nContent-Length: 2",
        b"X: a\r\n b",
        b"X: a\r\n\tb",
        b"X:\r\n Content-Length: 2",
    ],
)
def test_ambiguous__header_line(line: bytes) -> None:
    for data in (
        with_headers(b"A: b", line, b"Content-Length: 2"),
        with_headers(line),
        with_headers(b"A: b", line),
    ):
        assert judge(data) == (PROTOCOL, f"{DOWN}malformed header line {WAITING}")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.1 200 OK\nX: y\r\n\r\n{}", "malformed header line"),
        (b"HTTP/1.1 200 OK\r\nX: y\r\n\n{}", "malformed header line"),
        (b"HTTP/1.1 200 OK\nX: y\n\r\n\n{}", "malformed header line"),
    ],
)
def test_ambiguous__line_ends_of_two_kinds(data: bytes, why: str) -> None:
    assert judge(data) == (PROTOCOL, f"{DOWN}{why} {WAITING}")


def test_ambiguous__line_ends_of_one_kind_are_ok() -> None:
    assert judge(b"HTTP/1.1 200 OK\nContent-Length: 2\nX: y\n\n{}") == (OK, "")


BOTH = "both Transfer-Encoding and Content-Length"
CODING = "Transfer-Encoding is not chunked"


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ([b"Transfer-Encoding: chunked "], CODING),
        ([b"Transfer-Encoding: chunked\t"], CODING),
        ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"], CODING),
        ([b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"], CODING),
        ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], CODING),
        ([b"Transfer-Encoding: chunked", b"transfer-encoding: gzip"], CODING),
        ([b"Transfer-Encoding: chunked, identity"], CODING),
        ([b"Transfer-Encoding: chunked, chunked"], CODING),
        ([b"Transfer-Encoding: chunked;q=1"], CODING),
        ([b'Transfer-Encoding: "chunked"'], CODING),
        ([b"Transfer-Encoding: \x0bchunked"], CODING),
        ([b"Transfer-Encoding: xchunked"], CODING),
        ([b"Transfer-Encoding:"], CODING),
        ([b"Transfer-Encoding: chunked", b"Content-Length: 12"], BOTH),
        ([b"Content-Length: 12", b"Transfer-Encoding: chunked"], BOTH),
        ([b"Content-Length: nonsense", b"Transfer-Encoding: chunked"], BOTH),
        ([b"Content-Length: 2", b"content-length: 12"], "different values of Content-Length"),
        ([b"Content-Length: 2", b"Content-Length: 02"], "different values of Content-Length"),
        ([b"Content-Length: 2, 2"], "Content-Length is not a number of bytes"),
        ([b"Content-Length: 0x2"], "Content-Length is not a number of bytes"),
        ([b"Content-Length: 2 2"], "Content-Length is not a number of bytes"),
        ([b"Content-Length: \xb2"], "Content-Length is not a number of bytes"),
        ([b"Location: /a", b"Location: /b"], "different values of Location"),
    ],
)
def test_ambiguous__headers(headers: list[bytes], why: str) -> None:
    assert judge(with_headers(*headers, body=CHUNKS)) == (PROTOCOL, f"{DOWN}{why} {WAITING}")


def test_ambiguous__chunks_before_http_1_1() -> None:
    data = with_headers(b"Transfer-Encoding: chunked", body=CHUNKS, version=b"HTTP/1.0")
    assert judge(data) == (PROTOCOL, f"{DOWN}Transfer-Encoding in HTTP/1.0 {WAITING}")


@pytest.mark.parametrize("header", [b"Content-Length: 38", b"Transfer-Encoding: chunked"])
def test_ambiguous__informational_response_with_a_body(header: bytes) -> None:
    data = b"HTTP/1.1 103 Early Hints\r\n" + header + b"\r\n\r\n" + response("{}")
    assert judge(data) == (PROTOCOL, f"{DOWN}a response 103 with a body {WAITING}")


def test_ambiguous__repeated_content_encoding() -> None:
    body = gzip.compress(b"{}", mtime=0)
    for other in (b"gzip", b"identity"):
        headers = b"Content-Encoding: gzip", b"Content-Encoding: " + other, b"Content-Length: %d" % len(body)
        result, message = judge(with_headers(*headers, body=body))
        assert result == NOT_JSON
        assert f"the Content-Encoding gzip, {other.decode()} is not supported" in message


@pytest.mark.parametrize("name", ["gzip\x0b", "\xa0gzip", "gzip,", "gzip;q=1"])
def test_ambiguous__name_of_the_content_encoding(name: str) -> None:
    result, message = judge(response(gzip.compress(b"{}"), f"Content-Encoding: {name}"))
    assert result == NOT_JSON
    assert "is not supported" in message


def test_ambiguous__second_part_of_gzip() -> None:
    body = gzip.compress(b"{}", mtime=0) + gzip.compress(b'{"errors": ["x"]}', mtime=0)
    assert judge(response(body, "Content-Encoding: gzip")) == (
        PROTOCOL,
        f"{DOWN}the body has more than one part of gzip",
    )


MALFORMED = (PROTOCOL, f"{DOWN}the chunks of the body are malformed while reading the report of 127.0.0.1")


@pytest.mark.parametrize(
    "chunks",
    [
        b"2\r\n{}XX0\r\n\r\n",
        b"2\r\n{}0\r\n\r\n",
        b"2\r\n{}\n0\r\n\r\n",
        b"2\r\n{}\r0\r\n\r\n",
        b"2\r\n{} \r\n0\r\n\r\n",
        b"2\n{}\r\n0\r\n\r\n",
        b"2\r{}\r\n0\r\n\r\n",
        b"\r\n2\r\n{}\r\n0\r\n\r\n",
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b"+2\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b" 2\r\n{}\r\n0\r\n\r\n",
        b"2 2\r\n{}\r\n0\r\n\r\n",
        b"2_0\r\n{}\r\n0\r\n\r\n",
        b"\xb2\r\n{}\r\n0\r\n\r\n",
        b"2;a\nb\r\n{}\r\n0\r\n\r\n",
        b"2;a\rb\r\n{}\r\n0\r\n\r\n",
        b"2;a\0b\r\n{}\r\n0\r\n\r\n",
        b"00000000000000002\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}\r\n0\n\r\n",
        b"2\r\n{}\r\n0\r\n\n",
        b"2\r\n{}\r\n0\r\nnonsense\r\n\r\n",
        b"2\r\n{}\r\n0\r\nX y: z\r\n\r\n",
        b"2\r\n{}\r\n0\r\nX: y\n\r\n",
        b"2\r\n{}\r\n0\r\n{}\r\n\r\n",
    ],
)
def test_ambiguous__chunks(chunks: bytes) -> None:
    with Server(send_and_hold(chunked(end=chunks))) as server:
        result = ask(server)
    assert (verdict(result), *result.report.errors) == MALFORMED
    assert result.latency is None


@pytest.mark.parametrize("line", [b"2;a=b;c", b"2 ;a", b"2 ", b"0000000000000002", b"2;"])
def test_ambiguous__chunk_extensions_are_ok(line: bytes) -> None:
    assert judge(chunked(end=line + b"\r\n{}\r\n0\r\nX: y\r\n\r\n")) == (OK, "")


@pytest.mark.parametrize("size", range(len(chunked(b"{", b"}"))))
def test_ambiguous__no_part_of_a_response_is_ok(size: int) -> None:
    with Server(send(chunked(b"{", b"}")[:size])) as server:
        assert verdict(ask(server)) != OK


def test_ambiguous__pieces_of_any_size_are_read_the_same() -> None:
    data = b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" + chunked(b"{", b"}", end=b"0\r\nX: y\r\n\r\n")

    def script(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(data)):
            sock.sendall(data[i : i + 1])

    with Server(script) as server:
        assert verdict(ask(server)) == OK


def test_ambiguous__part_of_a_chunk_end_is_late(timeout: float) -> None:
    with Server(send_and_hold(chunked(end=b"2\r\n{}\r"))) as server:
        assert verdict(ask(server)) == LATE
    with Server(send(chunked(end=b"2\r\n{}\r"))) as server:
        result = ask(server)
    assert verdict(result) == TRUNCATED
    assert "cut off after 2 bytes: the connection was closed" in result.report.errors[0]
