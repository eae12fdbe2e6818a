"""Answers that are made to cost time: each one is bounded, over all redirects of the probe."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trustme

from proxyhealth.probing.deadline import MAX_LINES
from proxyhealth.probing.tls import tls_context
from tests.probing.asking import (
    BAD,
    BAD_REPORT,
    CONNECT,
    DOWN,
    OK,
    PROTOCOL,
    SILENT,
    TLS,
    TOO_LARGE,
    WAITING,
    Configure,
    ask,
    ask_in_time,
    verdict,
)
from tests.support import servers
from tests.support.machine import at_most
from tests.support.servers import Server, chunked, drip, flood, redirect, report, response, send

HINT = b"HTTP/1.1 103 Early Hints\r\n\r\n"
TOO_MANY = f"more than {MAX_LINES} lines of headers and chunks"


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[list[str]]:
    """Count the calls of a method of sockets."""
    calls: list[str] = []
    method = getattr(socket.socket, name)

    def wrapper(self: socket.socket, *args: object) -> object:
        calls.append(name)
        return method(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, name, wrapper)
        yield calls


# Lines.


@pytest.mark.parametrize(
    "before", [HINT * 2_000, HINT * 50, HINT + b"HTTP/1.1 103 X\r\n" + b"X: y\r\n" * 90 + b"\r\n"]
)
def test_lines__counted_over_all_redirects(before: bytes) -> None:
    with Server(
        send(before + response("", "Location: /healthz-report", *["X: y"] * 90, status="302 Found"))
    ) as server:
        result = ask(server)
        assert server.connections < 4
    assert (*verdict(result), result.report.errors) == (*PROTOCOL, (f"{DOWN}{TOO_MANY} {WAITING}",))


def test_lines__bytes_counted_over_all_redirects() -> None:
    with Server(
        send(response("", "Location: /healthz-report", "X: " + "y" * 30_000, status="302 Found"))
    ) as server:
        result = ask(server)
    assert verdict(result) == PROTOCOL
    assert result.report.errors == (f"{DOWN}more than 64 KiB of headers {WAITING}",)


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"0\r\n" + b"X: y\r\n" * 50 + b"\r\n"])
def test_lines__chunks_of_one_byte(end: bytes) -> None:
    with Server(send(chunked(*[b" "] * 60_000, b"{}", end=end))) as server:
        result = ask(server)
    assert (*verdict(result), result.report.errors) == (*TOO_LARGE, (BAD + TOO_MANY,))
    with Server(send(chunked(*[b" "] * 200, b"{}", end=end))) as server:
        assert verdict(ask(server)) == OK


# Receives.


def test_receives__few_for_single_bytes(monkeypatch: pytest.MonkeyPatch, configure: Configure) -> None:
    configure(TIMEOUT=1)
    script = drip(b"{}" * 9_999, 0.0001, start=b"HTTP/1.1 200 OK\r\n\r\n")
    with Server(script) as server, counted(monkeypatch, "recv_into") as calls:
        ask(server)
    assert len(calls) < 50


def test_receives__single_bytes_of_a_good_answer_are_ok() -> None:
    with Server(drip(report(warnings=["w"]), 0.0001)) as server:
        assert verdict(ask_in_time(server)) == OK


# Addresses and redirects.


def test_addresses__of_one_name_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [(f"127.9.{number // 250}.{1 + number % 250}", 1) for number in range(4_000)]
    monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(*many))
    with counted(monkeypatch, "connect") as calls:
        result = ask("http://paris.example")
    assert verdict(result) == CONNECT
    assert len(calls) <= 16  # a look for a route, and a connection, each
    assert "127.9.0.8 port" in result.report.errors[0]


def test_redirects__lengths_are_added() -> None:
    with Server(send(redirect("/" + "%41" * 300))) as server:
        result = ask(server)
        assert server.connections == 3
    assert verdict(result) == PROTOCOL
    assert result.report.errors[0].endswith("longer than 2,000 characters, with those before it")


# Bodies.


@pytest.mark.parametrize(
    "body",
    [
        '{"a":[' + "0," * 5_000 + "0]}",
        '{"a":[' + "{}," * 2_100 + "0]}",
        "{" + '"":"",' * 5_000 + '"":""}',
        "{" + '"errors":["x"],' * 2_000 + '"a":""}',
        '{"errors":[' + '"",' * 13_000 + '""]}',
    ],
)
def test_json__of_many_parts_is_refused(body: str) -> None:
    with Server(send(response(body))) as server:
        result = ask(server)
    assert verdict(result) == BAD_REPORT
    assert "nested too deeply, or has too many parts" in result.report.errors[0]


def test_json__commas_in_long_texts_are_accepted() -> None:
    with Server(send(response('{"warnings": ["' + "one, two, " * 900 + '"]}'))) as server:
        assert verdict(ask(server)) == OK


# TLS.


def records(kind: int, count: int, content: bytes) -> bytes:
    return (bytes([kind, 3, 3]) + len(content).to_bytes(2) + content) * count


def usual(ca: trustme.CA) -> ssl.SSLContext:
    return servers.server_context(ca, "127.0.0.1")


def tickets(ca: trustme.CA) -> ssl.SSLContext:
    context = servers.server_context(ca, "127.0.0.1")
    context.num_tickets = 1_000
    return context


def finite_field(ca: trustme.CA) -> ssl.SSLContext:
    context = servers.server_context(ca, "127.0.0.1")
    context.set_ecdh_curve("ffdhe8192")
    return context


@pytest.mark.parametrize(
    ("context", "verdict_", "why"),
    [
        (tickets, PROTOCOL, f"more than 16 KiB of TLS records without data {WAITING}"),
        (finite_field, TLS, "the server demands a key exchange without elliptic curves"),
    ],
)
def test_tls__costly_server_is_refused(
    context: Callable[[trustme.CA], ssl.SSLContext],
    verdict_: object,
    why: str,
    ca: trustme.CA,
    ca_file: Path,
    configure: Configure,
) -> None:
    configure(CA_BUNDLE=ca_file)
    tls_context(str(ca_file))  # otherwise the first probe builds it, for 70 ms
    with Server(send(report()), tls=context(ca)) as server:
        begin = time.thread_time()
        result = ask(server)
        assert time.thread_time() - begin < 0.1
    assert verdict(result) == verdict_
    assert why in result.report.errors[0]


def test_tls__records_of_one_byte_are_limited(ca: trustme.CA, ca_file: Path, configure: Configure) -> None:
    configure(CA_BUNDLE=ca_file)
    tls = servers.server_context(ca, "127.0.0.1")

    def script(count: int) -> servers.Script:
        return lambda sock: [sock.sendall(b" ") for _ in range(count)] and sock.sendall(b"{}")

    def answer(count: int) -> servers.Script:
        return lambda sock: (sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n"), script(count)(sock))[1]

    with Server(answer(300), tls=tls) as server:
        assert verdict(ask(server)) == OK
    with Server(answer(3_000), tls=tls) as server:
        result = ask(server)
    assert verdict(result) == TOO_LARGE
    assert result.report.errors == (f"{BAD}more than 16 KiB of TLS records without data",)


def with_short_records(context: ssl.SSLContext) -> servers.Script:
    """Return a script that splits the ServerHello into records of 30 bytes."""

    def script(sock: socket.socket) -> None:
        received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(received, to_send, server_side=True)

        def run(call: Callable[[], object]) -> None:
            while True:
                try:
                    call()
                    return
                except ssl.SSLWantReadError:
                    data, size = to_send.read(), 0
                    if data.startswith(b"\x16"):
                        size = int.from_bytes(data[3:5])
                    for start in range(0, size, 30):
                        sock.sendall(records(22, 1, data[5 : 5 + size][start : start + 30]))
                    sock.sendall(data[5 + size if size else 0 :])
                    received.write(sock.recv(65536))

        with suppress(ssl.SSLError):
            run(tls.do_handshake)
            run(tls.read)
            tls.write(report())
            sock.sendall(to_send.read())

    return script


@pytest.mark.parametrize(("context", "verdict_"), [(usual, OK), (finite_field, TLS)])
def test_tls__hello_in_short_records(
    context: Callable[[trustme.CA], ssl.SSLContext],
    verdict_: object,
    ca: trustme.CA,
    ca_file: Path,
    configure: Configure,
) -> None:
    configure(CA_BUNDLE=ca_file)
    with Server(with_short_records(context(ca)), read=False) as server:
        result = ask(f"https://127.0.0.1:{server.port}")
    assert verdict(result) == verdict_, result.report.errors


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (records(22, 1, b"\x0b" + bytes(90)), "the server does not begin with a ServerHello"),
        (records(21, 9, b"\1\x70"), ""),  # warnings
        (records(20, 9_999, b"\1"), ""),
    ],
)
def test_tls__malformed_beginning(data: bytes, why: str) -> None:
    def script(sock: socket.socket) -> None:
        sock.recv(65536)
        flood(data)(sock)

    with Server(script, read=False) as server, at_most(5):
        result = ask(f"https://127.0.0.1:{server.port}")
    assert verdict(result) == TLS
    assert why in result.report.errors[0]


def test_tls__handshake_without_end(timeout: float) -> None:
    def script(sock: socket.socket) -> None:
        sock.recv(65536)
        drip(records(22, 1, bytes([2, 0, 0, 80]) + b"\3\3" + bytes(78)), 0.01)(sock)
        servers.hold(sock)

    with Server(script, read=False) as server:
        assert verdict(ask(f"https://127.0.0.1:{server.port}")) in (TLS, SILENT)
