from __future__ import annotations

import contextlib
import gzip
import json
import logging
import os
import resource
import socket
import ssl
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trustme

import proxyhealth
from proxyhealth.probe import probe
from proxyhealth.report import HealthReport, Proxy, ProxyStatus, Reason, Status
from tests import servers
from tests.servers import (
    Server,
    chunked,
    drip,
    flood,
    redirect,
    report,
    response,
    send,
    send_and_hold,
    send_and_reset,
)

Configure = Callable[..., None]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
MOMENT = datetime(2024, 2, 29, tzinfo=UTC)

DOWN = "request to proxy failed: "
BAD = "failed to decode health report: "
HINT = "A page that is not JSON usually means that the URL is not that of a workspace proxy"
WAITING = "while waiting for 127.0.0.1 to answer"

OK = (Status.OK, Reason.NONE)
BAD_URL = (Status.UNHEALTHY, Reason.INVALID_URL)
BLOCKED = (Status.UNHEALTHY, Reason.BLOCKED)
DNS = (Status.UNREACHABLE, Reason.DNS)
CONNECT = (Status.UNREACHABLE, Reason.CONNECT)
TLS = (Status.UNREACHABLE, Reason.TLS)
SILENT = (Status.UNREACHABLE, Reason.TIMEOUT)
PROTOCOL = (Status.UNREACHABLE, Reason.PROTOCOL)
STATUS_CODE = (Status.UNHEALTHY, Reason.STATUS_CODE)
LATE = (Status.UNHEALTHY, Reason.TIMEOUT)
TRUNCATED = (Status.UNHEALTHY, Reason.TRUNCATED)
TOO_LARGE = (Status.UNHEALTHY, Reason.TOO_LARGE)
NOT_JSON = (Status.UNHEALTHY, Reason.NOT_JSON)
BAD_REPORT = (Status.UNHEALTHY, Reason.BAD_REPORT)
ERRORS = (Status.UNHEALTHY, Reason.REPORT_ERRORS)
INTERNAL = (Status.UNHEALTHY, Reason.INTERNAL)


def proxy_at(url: str) -> Proxy:
    return Proxy(
        id=UUID(int=1),
        name="paris",
        display_name="Paris",
        icon="",
        url=url,
        wildcard_hostname="",
        version="",
        deleted=False,
        created_at=MOMENT,
        updated_at=MOMENT,
    )


def ask(target: Server | str) -> ProxyStatus:
    return probe(proxy_at(target if isinstance(target, str) else target.url))


def verdict(result: ProxyStatus) -> tuple[Status, Reason]:
    return result.status, result.reason


def not_json(what: str, content_type: str = "application/json", begins: bytes = b"") -> str:
    beginning = begins.strip().decode(errors="replace")
    what += f", it begins with {beginning!r}" if beginning else ""
    return f"{BAD}{what}; its content type is {content_type}. {HINT}"


@pytest.fixture(autouse=True)
def patience(configure: Configure) -> None:
    """What is not about time must not fail on a busy machine; tests of time set less."""
    configure(TIMEOUT=10)


@pytest.fixture
def timeout(configure: Configure) -> float:
    configure(TIMEOUT=0.4)
    return 0.4


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return path


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds


# What is asked.


def test_probe__unregistered_makes_no_request() -> None:
    result = probe(proxy_at(""), MOMENT)
    assert result == ProxyStatus(proxy_at(""), "", Status.UNREGISTERED, checked_at=MOMENT)
    assert result.latency is None


def test_probe__asks_for_the_report_and_nothing_else() -> None:
    with Server(send(report())) as server:
        assert verdict(ask(server)) == OK
    assert server.connections == 1
    head, *headers = server.requests[0].decode().removesuffix("\r\n\r\n").split("\r\n")
    assert head == "GET /healthz-report HTTP/1.1"
    assert sorted(headers) == [
        "Accept-Encoding: identity",
        "Accept: application/json",
        "Connection: close",
        f"Host: 127.0.0.1:{server.port}",
        f"User-Agent: proxyhealth/{proxyhealth.__version__}",
    ]


@pytest.mark.parametrize(
    ("suffix", "path"),
    [
        ("", "/healthz-report"),
        ("/", "/healthz-report"),
        ("//", "//healthz-report"),
        ("/a/b", "/a/b/healthz-report"),
        ("/a/b/", "/a/b/healthz-report"),
    ],
)
def test_probe__leaves_out_one_trailing_slash(suffix: str, path: str) -> None:
    with Server(send(report())) as server:
        assert verdict(ask(server.url + suffix)) == OK
    assert server.paths == [path]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://paris.example", "paris.example"),
        ("http://PARIS.example:80/", "paris.example"),
        ("http://paris.example:8080", "paris.example:8080"),
        ("http://paris.example:443", "paris.example:443"),
        ("http://bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_probe__sends_the_host_without_the_default_port(
    url: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(send(report())) as server:
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(("127.0.0.1", server.port)))
        assert verdict(ask(url)) == OK
    assert f"\r\nHost: {host}\r\n".encode() in server.requests[0]


def test_probe__sends_the_host_without_the_default_port_of_https(
    ca: trustme.CA, ca_file: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(CA_BUNDLE=ca_file)
    with Server(send(report()), tls=servers.server_context(ca, "paris.example")) as server:
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(("127.0.0.1", server.port)))
        assert verdict(ask("https://paris.example")) == OK
        assert verdict(ask("https://paris.example:80")) == OK
    assert b"\r\nHost: paris.example\r\n" in server.requests[0]
    assert b"\r\nHost: paris.example:80\r\n" in server.requests[1]


@pytest.mark.skipif(not servers.has_ipv6(), reason="this machine has no IPv6")
def test_probe__takes_ipv6_addresses() -> None:
    with Server(send(report()), host="::1") as server:
        result = ask(f"http://[::1]:{server.port}")
    assert verdict(result) == OK
    assert result.proxy_host == f"[::1]:{server.port}"
    assert server.paths == ["/healthz-report"]
    assert f"\r\nHost: [::1]:{server.port}\r\n".encode() in server.requests[0]


def test_probe__looks_names_up() -> None:
    with Server(send(report())) as server:
        result = ask(f"http://localhost:{server.port}")
    assert verdict(result) == OK
    assert result.proxy_host == f"localhost:{server.port}"


def test_probe__opens_a_fresh_connection_each_time() -> None:
    keep_alive = send_and_hold(response("{}", "Connection: keep-alive", "Keep-Alive: timeout=60"))
    with Server(keep_alive) as server:
        assert [verdict(ask(server)) for _ in range(3)] == [OK] * 3
        assert server.connections == 3


def test_probe__goes_to_the_new_address_after_a_dns_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(send_and_hold(report(["old"]))) as old, Server(send(report()), host="127.0.0.2") as new:
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver((old.host, old.port)))
        assert ask("http://paris.example").report.errors == ("old",)
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver((new.host, new.port)))
        assert verdict(ask("http://paris.example")) == OK
        assert (old.connections, new.connections) == (1, 1)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_probe__ignores_proxies_of_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(send(report())) as server, Server(send(report(["wrong"]))) as trap:
        monkeypatch.setenv(name, trap.url)
        assert verdict(ask(server)) == OK
        assert (server.connections, trap.connections) == (1, 0)


def test_probe__ignores_netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with Server(send(report())) as server:
        assert verdict(ask(server)) == OK
    assert b"authorization" not in server.requests[0].lower()


def test_probe__keeps_no_cookies() -> None:
    first = response(b"", "Location: /next", "Set-Cookie: a=b; Path=/", status="302 Found")
    with Server(servers.sequence(send(first), send(response("{}", "Set-Cookie: c=d")))) as server:
        ask(server)
        ask(server)
    assert len(server.requests) == 3
    assert not [request for request in server.requests if b"cookie" in request.lower()]


# What comes with a status.


def test_probe__takes_over_the_moment_and_the_proxy() -> None:
    with Server(send(report())) as server:
        result = probe(proxy_at(server.url), MOMENT)
    assert result.checked_at == MOMENT
    assert result.proxy == proxy_at(server.url)
    assert result.proxy_host == server.netloc


def test_probe__takes_now_for_the_moment_if_none_is_given() -> None:
    with Server(send(report())) as server:
        before = datetime.now(UTC)
        result = ask(server)
    assert result.checked_at is not None
    assert before <= result.checked_at <= datetime.now(UTC)
    assert result.checked_at.utcoffset() == timedelta(0)


def test_probe__measures_the_latency_to_the_end_of_the_body() -> None:
    script = servers.after(0.1, drip(b"{}", 0.1, start=HEAD + b"Content-Length: 2\r\n\r\n"))
    with Server(script) as server:
        result = ask(server)
    assert verdict(result) == OK
    assert result.latency is not None
    assert 0.2 <= result.latency < 5


def test_probe__has_a_latency_for_every_response() -> None:
    for data in (report(["e"]), response(status="500 Oops"), response("<html>"), response(length=9)):
        with Server(send(data)) as server:
            assert ask(server).latency is not None


def test_probe__has_no_latency_without_a_response() -> None:
    with Server(send(b"")) as server, servers.refusing() as port:
        assert ask(server).latency is None
        assert ask(f"http://127.0.0.1:{port}").latency is None
        assert ask("nonsense").latency is None
        with Server(send(redirect(f"http://127.0.0.1:{port}/"))) as redirecting:
            assert ask(redirecting).latency is None


# Good reports.


@pytest.mark.parametrize(
    ("body", "warnings"),
    [
        ('{"errors": [], "warnings": []}', []),
        ('{"errors": null, "warnings": null}', []),
        ("{}", []),
        ('{"warnings": ["disk is full soon"]}', ["disk is full soon"]),
        ('{"WARNINGS": ["w"], "version": [1, {"errors": 3}]}', ["w"]),
        ("\ufeff{}", []),
    ],
)
def test_probe__is_ok_without_errors(body: str, warnings: list[str]) -> None:
    with Server(send(response(body))) as server:
        result = ask(server)
    assert verdict(result) == OK
    assert result.report == HealthReport((), tuple(warnings))


@pytest.mark.parametrize(
    "data",
    [
        response("{}", version="HTTP/1.0"),
        response("{}", version="HTTP/1.0", length=""),
        response("{}", version="HTTP/1.9"),
        response("{}", version="HTTP/0.9"),
        response("{}", length=""),
        response("{}", "Content-Length: 2"),
        response("{}", content_type="text/html"),
        response("{}", content_type="application/json; charset"),
        response("{}", content_type="application/json; charset=nonsense"),
        response("{}", content_type="\xe9\xff;;;=;"),
        response("{}", "Set-Cookie: " + "a=b; expires=" + "0" * 5000),
        response("{}", "Content-Encoding: identity"),
        response("{}", status="200"),
        response("{}", status="200 " + "x" * 1000),
        response("{}", *(f"X-{i}: y" for i in range(90))),
        response("{}", "X: " + "y" * 50_000),
        response("{}", "Location: /elsewhere"),
        response("{} ", length=2),
        response("{}trailing garbage", length=2),
        b"HTTP/1.1 200 OK\n\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5 + response("{}"),
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 5 + response("{}"),
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + response("{}"),
        chunked(b"{}"),
        chunked(b"{", b"}"),
        chunked(b"{", b"}", end=b"0\r\nTrailer: x\r\n\r\n"),
        chunked(b"{}", end=b"0000\r\n\r\n"),
        chunked(b"{}").replace(b"2\r\n", b"2;name=value\r\n"),
        chunked(b"{}").replace(b"\r\nTransfer", b"\r\nContent-Length: 1\r\nTransfer"),
    ],
)
def test_probe__is_ok_for_every_form_of_a_good_response(data: bytes) -> None:
    with Server(send(data)) as server:
        result = ask(server)
    assert (*verdict(result), result.report) == (*OK, HealthReport())


def test_probe__does_not_wait_for_the_end_of_a_connection_that_is_held() -> None:
    with Server(send_and_hold(report())) as server, at_most(5):
        assert verdict(ask(server)) == OK
    with Server(send_and_hold(chunked(b"{}"))) as server, at_most(5):
        assert verdict(ask(server)) == OK


# No use of the URL.


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("paris.example", "it must begin with http:// or https://"),
        ("ftp://paris.example", "it must begin with http:// or https://"),
        ("http://", "it has no host"),
        ("http://[::1", "its host cannot be read"),
        ("http://paris.example:99999", "its port must be a number from 1 to 65535"),
        ("http://me:hunter2@paris.example", "it must not contain a user name or a password"),
        ("http://paris.example/?a=b", "it must not contain a query (?) or a fragment (#)"),
        ("http://127.1", "'127.1' is not an IPv4 address"),
        ("http://paris..example", "'paris..example' is not a host name"),
        ("http://paris.example\r\nX: y", "it contains a space, a control character or a backslash"),
    ],
)
def test_probe__invalid_url(url: str, why: str) -> None:
    result = ask(url)
    assert verdict(result) == BAD_URL
    assert result.report == HealthReport((f"failed to parse proxy url: {why}",))
    assert (result.proxy_host, result.latency) == ("", None)


# No response.


def test_probe__unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    result = ask("http://paris.example")
    assert verdict(result) == DNS
    assert result.report.errors == (f"{DOWN}Name or service not known while looking up paris.example",)
    assert result.proxy_host == "paris.example"


def test_probe__name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", servers.resolver())
    result = ask("http://paris.example")
    assert verdict(result) == DNS
    assert result.report.errors == (f"{DOWN}the name has no address while looking up paris.example",)


def test_probe__connection_refused() -> None:
    with servers.refusing() as port:
        result = ask(f"http://127.0.0.1:{port}")
    assert verdict(result) == CONNECT
    assert result.report.errors == (f"{DOWN}Connection refused while connecting to 127.0.0.1 port {port}",)
    assert result.proxy_host == f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("script", "read", "why"),
    [
        (send(b""), True, f"Remote end closed connection without response {WAITING}"),
        (send_and_reset(b""), True, f"Connection reset by peer {WAITING}"),
        (send_and_reset(HEAD), True, f"Connection reset by peer {WAITING}"),
        (send_and_reset(b"HTTP/1.1 20"), True, f"Connection reset by peer {WAITING}"),
        (send(HEAD), True, f"the connection was closed in the middle of the headers {WAITING}"),
        (send(HEAD[:-2]), True, f"the connection was closed in the middle of the headers {WAITING}"),
        (send(HEAD[:-9]), True, f"the connection was closed in the middle of the headers {WAITING}"),
        (
            send(b"HTTP/1.1 200 OK"),
            True,
            f"the connection was closed in the middle of the headers {WAITING}",
        ),
    ],
)
def test_probe__connection_lost_before_the_headers_are_complete(
    script: servers.Script, read: bool, why: str
) -> None:
    with Server(script, read=read) as server:
        result = ask(server)
    assert (*verdict(result), result.report.errors) == (*CONNECT, (DOWN + why,))


@pytest.mark.parametrize("script", [send(b""), send_and_reset(b"")])
def test_probe__connection_lost_before_the_request_is_read(script: servers.Script) -> None:
    # Which of the calls on the connection meets it first is a matter of luck.
    with Server(script, read=False) as server:
        result = ask(server)
    assert verdict(result) == CONNECT
    assert result.report.errors[0].startswith(DOWN)


@pytest.mark.parametrize(
    ("script", "read"),
    [
        (servers.hold, True),
        (servers.hold, False),
        (send_and_hold(HEAD), True),
        (send_and_hold(b"H"), True),
        (send_and_hold(b"HTTP/1.1 200 OK\r\nX: y"), True),
        (send_and_hold(b"HTTP/1.1 100 Continue\r\n\r\n"), True),
        (send_and_hold(b"HTTP/1.1 103 Early Hints\r\n\r\n"), True),
        (drip(HEAD, 0.05), True),
        (drip(HEAD, 1), True),
        (drip(b"X: y\r\n" * 100, 0.01, start=HEAD), True),
    ],
)
def test_probe__no_complete_headers_in_time(script: servers.Script, read: bool, timeout: float) -> None:
    with Server(script, read=read) as server, at_most(timeout + 0.5):
        result = ask(server)
    assert verdict(result) == SILENT
    assert result.report.errors == (f"{DOWN}no answer within 0.4 s; the time ran out {WAITING}",)
    assert result.latency is None


@pytest.mark.parametrize("part", ["headers", "body"])
def test_probe__one_byte_a_second_is_judged_in_time(part: str, configure: Configure) -> None:
    configure(TIMEOUT=1)
    start = b"" if part == "headers" else HEAD + b"Content-Length: 9\r\n\r\n"
    with Server(drip(b"HTTP/1.1 200 OK\r\n\r\n", 1, start=start)) as server, at_most(1.5):
        assert verdict(ask(server)) == (SILENT if part == "headers" else LATE)


def test_probe__no_answer_to_a_connection_being_opened(timeout: float) -> None:
    with servers.silent() as port, at_most(timeout + 0.5):
        result = ask(f"http://127.0.0.1:{port}")
    assert verdict(result) == SILENT
    assert result.report.errors == (
        f"{DOWN}no answer within 0.4 s; the time ran out while connecting to 127.0.0.1 port {port}",
    )


def test_probe__hanging_name_look_up(timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    release, ended = threading.Event(), threading.Event()

    def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        release.wait(30)
        ended.set()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        with at_most(timeout + 0.5):
            result = ask("http://paris.example")
    finally:
        release.set()
    assert ended.wait(5)
    assert verdict(result) == SILENT
    assert result.report.errors == (
        f"{DOWN}no answer within 0.4 s; the time ran out while looking up paris.example",
    )


def test_probe__redirects_share_one_deadline(timeout: float) -> None:
    slow = servers.after(timeout / 3, send(redirect("/again")))
    with Server(slow) as server, at_most(timeout + 0.5):
        result = ask(server)
        assert server.connections <= 3
    assert verdict(result) == SILENT


def test_probe__second_address_is_tried_when_the_first_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(send(report())) as server, servers.refusing() as port:
        addresses = ("127.0.0.2", port), ("127.0.0.1", server.port)
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(*addresses))
        assert verdict(ask("http://paris.example")) == OK


def test_probe__second_address_is_tried_when_the_first_keeps_silent(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(TIMEOUT=2)
    with Server(send(report())) as server, servers.silent("127.0.0.2") as port, at_most(2.5):
        addresses = ("127.0.0.2", port), ("127.0.0.1", server.port)
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(*addresses))
        assert verdict(ask("http://paris.example")) == OK


def test_probe__all_addresses_keep_silent(timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.silent() as port, at_most(timeout + 0.5):
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(*[("127.0.0.1", port)] * 5))
        assert verdict(ask("http://paris.example")) == SILENT


# Not HTTP.

HTTP2_SETTINGS = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"
TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x0a"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"<html>hello</html>", r"the answer is not HTTP: it begins with '<html>hello</html>'"),
        (b"{}", "the answer is not HTTP: it begins with '{}'"),
        (b"\r\n\r\n", r"the answer is not HTTP: it begins with '\r\n\r\n'"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", r"the answer is not HTTP: it begins with 'SSH-2.0-OpenSSH_9.6\r\n'"),
        (b"220 mail ESMTP\r\n", r"the answer is not HTTP: it begins with '220 mail ESMTP\r\n'"),
        (b"\x00" * 5000, "the answer is not HTTP: it begins with '" + r"\x00" * 64 + "'"),
        (HTTP2_SETTINGS, "the answer is not HTTP: it begins with '" + r"\x00\x00\x06\x04"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "the answer is not HTTP: it begins with 'PRI * HTTP/2.0"),
        (
            TLS_ALERT,
            (
                r"the answer is not HTTP: it begins with '\x15\x03\x01\x00\x02\x02\n'; "
                "TLS is spoken there, is the URL to begin with https://?"
            ),
        ),
        (b"HTTPS/1.1 200 OK\r\n\r\n{}", "the answer is not HTTP: it begins with 'HTTPS/1.1 200 OK"),
        (b"http/1.1 200 OK\r\n\r\n{}", "the answer is not HTTP: it begins with 'http/1.1 200 OK"),
        (b"HTTP/2 200\r\n\r\n{}", "the answer is not HTTP/1.1: it begins with 'HTTP/2'"),
        (b"HTTP/2.0 200 OK\r\n\r\n{}", "the answer is not HTTP/1.1: it begins with 'HTTP/2.0'"),
        (b"HTTP/1.1\r\n\r\n{}", r"the answer is not HTTP: it begins with 'HTTP/1.1\r\n'"),
        (b"HTTP/1.1 abc\r\n\r\n{}", r"the answer is not HTTP: it begins with 'HTTP/1.1 abc\r\n'"),
        (b"HTTP/1.1 20 OK\r\n\r\n{}", r"the answer is not HTTP: it begins with 'HTTP/1.1 20 OK\r\n'"),
        (b"HTTP/1.1 1000 OK\r\n\r\n{}", r"the answer is not HTTP: it begins with 'HTTP/1.1 1000 OK\r\n'"),
        (b"HTTP/1.1 -200 OK\r\n\r\n{}", r"the answer is not HTTP: it begins with 'HTTP/1.1 -200 OK\r\n'"),
        (b"HTTP/1.1 " + b"9" * 5000 + b"\r\n\r\n", "the answer is not HTTP: it begins with 'HTTP/1.1 999"),
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
    assert len(result.report.errors[0]) < 500
    assert result.latency is None


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        (["Content-Length: 2", "Content-Length: 3"], f"more than one Content-Length came {WAITING}"),
        (["Content-Length: 3", "Content-Length: 2"], f"more than one Content-Length came {WAITING}"),
        (["Content-Length: -1"], f"a Content-Length that is no number of bytes came {WAITING}"),
        (["Content-Length: +2"], f"a Content-Length that is no number of bytes came {WAITING}"),
        (["Content-Length: 2, 3"], f"a Content-Length that is no number of bytes came {WAITING}"),
        (["Content-Length: two"], f"a Content-Length that is no number of bytes came {WAITING}"),
        (["Content-Length:"], f"a Content-Length that is no number of bytes came {WAITING}"),
        (["Content-Length: 2_0"], f"a Content-Length that is no number of bytes came {WAITING}"),
        (
            ["Content-Length: " + "9" * 5000],
            f"a Content-Length that is no number of bytes came {WAITING}",
        ),
        ([f"X-{i}: y" for i in range(200)], f"got more than 100 headers {WAITING}"),
        (["X: " + "y" * 1_000_000], f"more than 64 KiB of headers {WAITING}"),
        (["X: " + "y" * 9000] * 90, f"more than 64 KiB of headers {WAITING}"),
    ],
)
def test_probe__headers_that_are_not_those_of_http(headers: list[str], why: str) -> None:
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
    )


# TLS.


def test_probe__trusts_the_authorities_in_ca_bundle(
    ca: trustme.CA, ca_file: Path, configure: Configure
) -> None:
    configure(CA_BUNDLE=str(ca_file))
    with Server(send(report(warnings=["w"])), tls=servers.server_context(ca, "127.0.0.1")) as server:
        result = ask(server)
    assert (*verdict(result), result.report.warnings) == (*OK, ("w",))
    assert server.paths == ["/healthz-report"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_probe__checks_the_name_in_the_certificate(
    host: str, ca: trustme.CA, ca_file: Path, configure: Configure
) -> None:
    configure(CA_BUNDLE=ca_file)
    with Server(send(report()), tls=servers.server_context(ca, host)) as server:
        assert verdict(ask(f"https://{host}:{server.port}")) == OK


def certificate_problem(server: Server, host: str = "127.0.0.1") -> str:
    result = ask(f"https://{host}:{server.port}")
    assert verdict(result) == TLS
    assert server.requests == []
    assert result.latency is None
    prefix = (
        f"{DOWN}certificate not accepted while connecting to 127.0.0.1 port {server.port}, "
        "in the TLS handshake: "
    )
    assert result.report.errors[0].startswith(prefix)
    return result.report.errors[0].removeprefix(prefix)


def test_probe__unknown_authority(ca: trustme.CA) -> None:
    with Server(send(report()), tls=servers.server_context(ca, "127.0.0.1")) as server:
        assert certificate_problem(server) == "unable to get local issuer certificate"


def test_probe__expired_certificate(ca: trustme.CA, ca_file: Path, configure: Configure) -> None:
    configure(CA_BUNDLE=ca_file)
    past = datetime(2020, 1, 1, tzinfo=UTC)
    with Server(send(report()), tls=servers.server_context(ca, "127.0.0.1", not_after=past)) as server:
        assert certificate_problem(server) == "certificate has expired"


def test_probe__self_signed_certificate(ca: trustme.CA) -> None:
    with Server(send(report()), tls=servers.self_signed_context(ca)) as server:
        assert certificate_problem(server).startswith("self-signed certificate")


def test_probe__certificate_of_another_name(ca: trustme.CA, ca_file: Path, configure: Configure) -> None:
    configure(CA_BUNDLE=ca_file)
    with Server(send(report()), tls=servers.server_context(ca, "paris.example")) as server:
        assert certificate_problem(server).startswith("IP address mismatch")
        assert certificate_problem(server, "localhost").startswith("Hostname mismatch")


def test_probe__new_ca_bundle_counts_without_a_restart(
    ca: trustme.CA, configure: Configure, tmp_path: Path
) -> None:
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    os.utime(path, (1, 1))
    configure(CA_BUNDLE=path)
    with Server(send(report()), tls=servers.server_context(ca, "127.0.0.1")) as server:
        assert verdict(ask(server)) == TLS
        ca.cert_pem.write_to_path(path)
        assert verdict(ask(server)) == OK


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"\x00" * 99]
)
def test_probe__plain_bytes_on_a_tls_port(data: bytes) -> None:
    with Server(send_and_hold(data), read=False) as server, at_most(5):
        result = ask(f"https://127.0.0.1:{server.port}")
    assert verdict(result) == TLS
    where = f"connecting to 127.0.0.1 port {server.port}, in the TLS handshake"
    assert result.report.errors == (
        f"{DOWN}no TLS is spoken there (while {where}); is the URL to begin with http://?",
    )


def test_probe__tls_on_a_plain_port(ca: trustme.CA) -> None:
    with Server(send(report()), tls=servers.server_context(ca, "127.0.0.1")) as server:
        result = ask(f"http://127.0.0.1:{server.port}")
    # A server that sends an alert first shows what it is, one that just closes does not.
    assert verdict(result) in (CONNECT, PROTOCOL)
    assert result.report.errors[0].startswith(DOWN)


def slow_hello(sock: socket.socket) -> None:
    sock.recv(65536)
    drip(b"\x16\x03\x03\x40\x00".ljust(999, b"\x00"), 0.05)(sock)


@pytest.mark.parametrize("script", [servers.hold, send_and_hold(b"\x16\x03\x03\x00"), slow_hello])
def test_probe__tls_handshake_that_stalls(script: servers.Script, timeout: float) -> None:
    with Server(script, read=False) as server, at_most(timeout + 0.5):
        result = ask(f"https://127.0.0.1:{server.port}")
    assert verdict(result) == SILENT
    where = f"connecting to 127.0.0.1 port {server.port}, in the TLS handshake"
    assert result.report.errors == (f"{DOWN}no answer within 0.4 s; the time ran out while {where}",)


@pytest.mark.parametrize("script", [send(b""), send_and_reset(b"")])
def test_probe__tls_handshake_that_is_broken_off(script: servers.Script) -> None:
    # Whether a close looks like a reset depends on what was under way.
    with Server(script, read=False) as server:
        result = ask(f"https://127.0.0.1:{server.port}")
    assert verdict(result) in (TLS, CONNECT)
    assert result.report.errors[0].startswith(DOWN)


def test_probe__time_bounds_tls_too(ca: trustme.CA, ca_file: Path, configure: Configure) -> None:
    configure(CA_BUNDLE=ca_file, TIMEOUT=0.5)
    tls = servers.server_context(ca, "127.0.0.1")
    with Server(servers.hold, tls=tls) as server, at_most(1):
        assert verdict(ask(server)) == SILENT
    with Server(drip(b"{}" * 99, 0.05, start=HEAD + b"\r\n"), tls=tls) as server, at_most(1):
        assert verdict(ask(server)) == LATE


def test_probe__old_tls_is_refused(ca: trustme.CA, ca_file: Path, configure: Configure) -> None:
    configure(CA_BUNDLE=ca_file)
    tls = servers.server_context(ca, "127.0.0.1")
    tls.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        tls.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        tls.maximum_version = ssl.TLSVersion.TLSv1_1
    with Server(send(report()), tls=tls) as server:
        result = ask(server)
    assert verdict(result) == TLS
    assert result.report.errors[0].startswith(f"{DOWN}TLS failed while connecting to 127.0.0.1 port")


# Redirects.


def led_to(url: str) -> str:
    return f"redirected to {url}; set the proxy's URL to where its users are to go"


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
)
def test_probe__follows_redirects_with_a_warning(status: str) -> None:
    with (
        Server(send(report(warnings=["own"])), host="127.0.0.2") as there,
        Server(send(redirect(f"{there.url}/report", status))) as here,
    ):
        result = ask(here)
    assert verdict(result) == OK
    assert result.report.warnings == (led_to(f"{there.url}/report"), "own")
    assert result.proxy_host == here.netloc
    assert there.paths == ["/report"]
    assert f"\r\nHost: {there.netloc}\r\n".encode() in there.requests[0]


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/x", "/x"),
        ("x", "/x"),
        ("./x/../y", "/y"),
        ("?a=b", "/healthz-report?a=b"),
        ("/x?token=hunter2", "/x?token=hunter2"),
        ("/x#top", "/x"),
        ("/a b", "/a%20b"),
        ("/\xc3\xa9", "/%C3%A9"),
        ("/\xe9", "/%EF%BF%BD"),
        ("/%2e%2E/", None),
        ("//{netloc}/x", "/x"),
        ("http://{netloc}", "/"),
        ("HTTP://{netloc}/x", "/x"),
        ("  /x  ", "/x"),
    ],
)
def test_probe__follows_every_form_of_a_location(location: str, path: str | None) -> None:
    with Server(lambda sock: script(sock)) as server:
        script = servers.sequence(send(redirect(location.format(netloc=server.netloc))), send(report()))
        result = ask(server)
    assert verdict(result) == OK
    assert len(server.paths) == 2
    if path is not None:
        assert server.paths[1] == path
    assert "hunter2" not in repr(result.report)


def test_probe__follows_exactly_ten_redirects() -> None:
    hops = [send(redirect(f"/{i}")) for i in range(1, 11)]
    with Server(servers.sequence(*hops, send(report()))) as server:
        result = ask(server)
    assert verdict(result) == OK
    assert server.paths == ["/healthz-report", *(f"/{i}" for i in range(1, 11))]
    assert result.report.warnings == (led_to(f"{server.url}/10"),)


@pytest.mark.parametrize("location", ["/healthz-report", "/other"])
def test_probe__gives_up_after_ten_redirects(location: str) -> None:
    with Server(send(redirect(location))) as server:
        result = ask(server)
    assert verdict(result) == PROTOCOL
    assert result.report.errors == (f"{DOWN}more than 10 redirects",)
    assert result.report.warnings == (led_to(f"{server.url}{location}"),)
    assert server.connections == 11


def test_probe__follows_a_redirect_to_https(ca: trustme.CA, ca_file: Path, configure: Configure) -> None:
    configure(CA_BUNDLE=ca_file)
    with (
        Server(send(report()), tls=servers.server_context(ca, "127.0.0.1")) as there,
        Server(send(redirect(f"{there.url}/healthz-report"))) as here,
    ):
        result = ask(here)
    assert verdict(result) == OK
    assert result.report.warnings == (led_to(f"{there.url}/healthz-report"),)


def test_probe__verifies_certificates_behind_redirects(ca: trustme.CA) -> None:
    with Server(send(report()), tls=servers.server_context(ca, "127.0.0.1")) as there:
        with Server(send(redirect(there.url))) as here:
            assert verdict(ask(here)) == TLS
        assert there.requests == []


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("file:///etc/passwd", "it must begin with http:// or https://"),
        ("ftp://paris.example/", "it must begin with http:// or https://"),
        ("javascript:alert(1)", "it must begin with http:// or https://"),
        ("data:application/json,{}", "it must begin with http:// or https://"),
        ("https://", "it has no host"),
        ("https:///x", "it has no host"),
        ("http://[::1", "its host cannot be read"),
        ("http://me:hunter2@paris.example/", "it must not contain a user name or a password"),
        ("http://hunter2@[::1/", "its host cannot be read"),
        ("http://me:hunter2@exa\u2100mple.com/", "its host cannot be read"),
        ("http://paris.example:0/", "its port must be a number from 1 to 65535"),
        ("http://pa ris.example/", "it contains a space, a control character or a backslash"),
        ("http://2130706433/", "'2130706433' is not an IPv4 address"),
    ],
)
def test_probe__redirected_to_a_url_that_cannot_be_used(location: str, why: str) -> None:
    with Server(send(redirect(location.encode().decode("latin-1")))) as server:
        result = ask(server)
    assert verdict(result) == PROTOCOL
    assert result.report.errors == (f"{DOWN}redirected to a URL that cannot be used: {why}",)
    assert server.connections == 1


@pytest.mark.parametrize("location", ["/x?token=hunter2", "/y?token=hunter2#hunter2"])
@pytest.mark.parametrize(
    "end", [send(b"nonsense"), send(response("<html>")), send(b""), send(response(status="500 Oops"))]
)
def test_probe__never_shows_the_query_of_a_redirect(
    location: str, end: servers.Script, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(servers.sequence(send(redirect(location)), end)) as server:
        result = ask(server)
    assert result.status is not Status.OK
    assert result.report.warnings == (led_to(f"{server.url}{location[:2]}"),)
    assert "hunter2" not in repr(result) + caplog.text
    assert "hunter2" in server.paths[1]


def test_probe__names_where_a_redirect_led_without_controls_and_not_at_length() -> None:
    with Server(servers.sequence(send(redirect("/\x1b[31m\x7f" + "x" * 5000)), send(report()))) as server:
        warning = ask(server).report.warnings[0]
    assert warning.startswith(f"redirected to {server.url}/[31mxxx")
    assert "x…; set the proxy's URL" in warning
    assert len(warning) < 300


def test_probe__counts_the_warnings_right_when_a_redirect_adds_one() -> None:
    many = response(json.dumps({"warnings": ["w"] * 100}))
    with Server(servers.sequence(send(redirect("/x")), send(many))) as server:
        warnings = ask(server).report.warnings
    assert len(warnings) == 50
    assert warnings[0] == led_to(f"{server.url}/x")
    assert warnings[-1] == "… and 52 more"


def test_probe__redirected_to_a_refusing_port() -> None:
    with servers.refusing() as port, Server(send(redirect(f"http://127.0.0.1:{port}/x"))) as server:
        result = ask(server)
    assert verdict(result) == CONNECT
    assert result.report.errors == (f"{DOWN}Connection refused while connecting to 127.0.0.1 port {port}",)
    assert result.report.warnings == (led_to(f"http://127.0.0.1:{port}/x"),)


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
        ("401 Unauthorized", "unexpected status code 401: Unauthorized"),
        ("404 Not Found", "unexpected status code 404: Not Found"),
        ("500 Internal Server Error", "unexpected status code 500: Internal Server Error"),
        ("503", "unexpected status code 503"),
        ("999 What\x1b[31m?", "unexpected status code 999: What[31m?"),
        ("500 " + "x" * 5000, "unexpected status code 500: " + "x" * 171 + "…"),
    ],
)
def test_probe__status_other_than_200(status: str, message: str) -> None:
    with Server(send(response('{"errors": ["not read"]}', status=status))) as server:
        result = ask(server)
    assert (*verdict(result), result.report) == (*STATUS_CODE, HealthReport((message,)))
    assert result.latency is not None


@pytest.mark.parametrize("location", ["", "   "])
def test_probe__redirect_without_a_location(location: str) -> None:
    with Server(send(redirect(location))) as server:
        result = ask(server)
    assert verdict(result) == STATUS_CODE
    assert result.report.errors == ("unexpected status code 302: Found",)


def test_probe__does_not_read_the_body_of_an_error() -> None:
    start = b"HTTP/1.1 500 Oops\r\nContent-Length: 99999999999\r\n\r\n"
    with Server(flood(b"x" * 65536, start=start)) as server, at_most(5):
        assert verdict(ask(server)) == STATUS_CODE
    with Server(send_and_hold(start)) as server, at_most(5):
        assert verdict(ask(server)) == STATUS_CODE


# Bodies that end too late, too early, or not at all.


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
    with Server(script) as server, at_most(timeout + 0.5):
        result = ask(server)
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
        (send(chunked(b"{}", end=b"")), "cut off after 0 bytes: the connection was closed"),
        (send(chunked(b"{}")[:-9]), "cut off after 0 bytes: the connection was closed"),
        (send(chunked(end=b"5\r\n{}")), "cut off after 0 bytes: the connection was closed"),
        (send(chunked(end=b"")), "cut off after 0 bytes: the connection was closed"),
        (send_and_hold(chunked(end=b"x\r\n{}\r\n")), "cut off after 0 bytes: its chunks are malformed"),
        (send_and_hold(chunked(end=b"\r\n{}\r\n")), "cut off after 0 bytes: its chunks are malformed"),
        (send_and_hold(chunked(end=b"-5\r\n{}\r\n")), "cut off after 0 bytes: its chunks are malformed"),
        (
            send_and_hold(chunked(end=b"{}")[:-2] + b"{}\r\n"),
            "cut off after 0 bytes: its chunks are malformed",
        ),
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


def test_probe__chunk_of_negative_size_is_no_end_of_it() -> None:
    with Server(send(chunked(end=b"-1\r\n{}\r\n0\r\n\r\n"))) as server:
        assert verdict(ask(server)) == TRUNCATED


def test_probe__content_length_too_small() -> None:
    with Server(send(response('{"errors": []}', length=5))) as server:
        result = ask(server)
    assert verdict(result) == NOT_JSON
    assert result.report.errors[0].startswith(f"{BAD}the body is not JSON (")


FLOODS = {
    "body": flood(b"x" * 65536, start=HEAD + b"\r\n"),
    "body of declared length": flood(b"x" * 65536, start=HEAD + b"Content-Length: 99999999999\r\n\r\n"),
    "chunks": flood(b"1000\r\n" + b"x" * 4096 + b"\r\n", start=chunked(end=b"")),
    "tiny chunks": flood(b"2\r\nxy\r\n" * 1000, start=chunked(end=b"")),
    "huge chunk": flood(b"x" * 65536, start=chunked(end=b"ffffffffffff\r\n")),
    "negative chunk": flood(b"x" * 65536, start=chunked(end=b"-1\r\n")),
    "trailers": flood(b"X: y\r\n" * 1000, start=chunked(b"{}", end=b"0\r\n")),
}


@pytest.mark.parametrize("script", FLOODS.values(), ids=FLOODS)
def test_probe__body_without_end(script: servers.Script) -> None:
    with Server(script) as server, at_most(5):
        result = ask(server)
    assert verdict(result) == TOO_LARGE
    assert result.report.errors == (f"{BAD}more than 64 KiB",)


@pytest.mark.parametrize("start", [b"", b"1;"])
def test_probe__chunk_size_line_without_end(start: bytes) -> None:
    with Server(flood(b"0" * 65536, start=chunked(end=start))) as server, at_most(5):
        result = ask(server)
    assert verdict(result) == TRUNCATED
    assert result.report.errors == (f"{BAD}cut off after 0 bytes: its chunks are malformed",)


def test_probe__report_of_exactly_64_kib_is_read() -> None:
    body = b'{"warnings": ["w"]}'.ljust(65536)
    for data in (response(body), chunked(body), response(body, length="")):
        with Server(send(data)) as server:
            assert verdict(ask(server)) == OK


def test_probe__report_of_a_byte_more_is_too_large() -> None:
    body = b'{"warnings": ["w"]}'.ljust(65537)
    for data in (response(body), chunked(body), response(body, length="")):
        with Server(send(data)) as server:
            result = ask(server)
        assert (*verdict(result), result.report.errors) == (*TOO_LARGE, (f"{BAD}more than 64 KiB",))


# Content encodings, none of which was asked for.


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


REPORT = b'{"warnings": ["' + bytes(range(32, 92)).replace(b'"', b"") + b'"]}'
REPORT = REPORT.replace(b"\\", b"")


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(REPORT)),
        ("GZIP", gzip.compress(REPORT)),
        ("x-gzip", gzip.compress(REPORT)),
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
        ("gzip", b"{}", "the body is not in the encoding that it names, gzip"),
        ("gzip", zlib.compress(b"{}"), "the body is not in the encoding that it names, gzip"),
        ("deflate", b"<html>", "the body is not in the encoding that it names, deflate"),
        (
            "gzip",
            gzip.compress(b"{}")[:-8] + b"\x00" * 8,
            "the body is not in the encoding that it names, gzip",
        ),
        ("br", b"\x0b\x01\x80{}\x03", "the body comes in an encoding that was not asked for, br"),
        ("zstd", b"{}", "the body comes in an encoding that was not asked for, zstd"),
        (
            "gzip, gzip",
            gzip.compress(gzip.compress(b"{}")),
            "the body comes in an encoding that was not asked for, gzip, gzip",
        ),
        (
            "x" * 1000,
            b"{}",
            f"the body comes in an encoding that was not asked for, {'x' * 49}…",
        ),
    ],
)
def test_probe__encoding_that_cannot_be_read(encoding: str, body: bytes, why: str) -> None:
    with Server(send(response(body, f"Content-Encoding: {encoding}"))) as server:
        result = ask(server)
    assert (*verdict(result), result.report.errors) == (*NOT_JSON, (not_json(why),))


def test_probe__plain_body_named_compressed_in_part_only() -> None:
    body = gzip.compress(b"{}") + b"trailing garbage"
    with Server(send(response(body, "Content-Encoding: gzip"))) as server:
        assert verdict(ask(server)) == OK


# Bodies that are no report.


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "the body is empty"),
        (b" \r\n", "the body is empty"),
        (b"<!doctype html>", "the body is not JSON (Expecting value: line 1 column 1 (char 0))"),
        (b"OK", "the body is not JSON (Expecting value: line 1 column 1 (char 0))"),
        (b"NaN", "the body is not JSON (NaN is not JSON)"),
        (b"{}{}", "the body is not JSON (Extra data: line 1 column 3 (char 2))"),
        (b'{"errors": ["\xff\xfe"]}', "the body is not UTF-8"),
        (b'{"errors": ["\xed\xa0\x80"]}', "the body is not UTF-8"),
        ("{}".encode("utf-16"), "the body is not UTF-8"),
        (b"{\x00}\x00", None),
        (b'{"errors": ["\x00"]}', None),
    ],
)
def test_probe__body_is_not_json(body: bytes, what: str | None) -> None:
    with Server(send(response(body, content_type="text/html; charset=utf-8"))) as server:
        result = ask(server)
    assert verdict(result) == NOT_JSON
    (message,) = result.report.errors
    if what is not None:
        assert message == not_json(what, "text/html; charset=utf-8", body)
    else:
        assert message.startswith(f"{BAD}the body is not JSON (")
        assert message.endswith(f"; its content type is text/html; charset=utf-8. {HINT}")


def test_probe__body_is_not_json_and_has_no_type() -> None:
    with Server(send(b"HTTP/1.1 200 OK\r\n\r\nhello")) as server:
        (message,) = ask(server).report.errors
    what = "the body is not JSON (Expecting value: line 1 column 1 (char 0))"
    assert message == not_json(what, "none", b"hello")


def test_probe__only_the_beginning_of_a_page_is_shown() -> None:
    with Server(send(response(b"\n <h1>" + b"x" * 10_000, content_type="text/html"))) as server:
        (message,) = ask(server).report.errors
    what = "the body is not JSON (Expecting value: line 2 column 2 (char 2))"
    assert message == not_json(what, "text/html", b"<h1>" + b"x" * 56)


def test_probe__hint_survives_an_endless_content_type() -> None:
    with Server(send(response("hello", content_type="x\x1b" * 5000))) as server:
        (message,) = ask(server).report.errors
    assert message.endswith(HINT)
    assert "\x1b" not in message


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("null", "the JSON is not an object"),
        ("[]", "the JSON is not an object"),
        ('"x"', "the JSON is not an object"),
        ("0", "the JSON is not an object"),
        ("9" * 5000, "the JSON is not an object"),
        ('{"errors": "down"}', '"errors" is not a list of strings'),
        ('{"errors": {"a": "b"}}', '"errors" is not a list of strings'),
        ('{"errors": [1]}', '"errors" is not a list of strings'),
        ('{"errors": [null]}', '"errors" is not a list of strings'),
        ('{"Errors": false}', '"errors" is not a list of strings'),
        ('{"warnings": [[]]}', '"warnings" is not a list of strings'),
        ("[" * 30_000 + "]" * 30_000, "the JSON is nested too deeply"),
        ("[" * 60_000, "the JSON is nested too deeply"),
        ('{"errors":' * 6000 + "[]" + "}" * 5000, "the JSON is nested too deeply"),
    ],
)
def test_probe__json_is_no_report(body: str, what: str) -> None:
    with Server(send(response(body))) as server:
        result = ask(server)
    assert (*verdict(result), result.report.errors) == (*BAD_REPORT, (BAD + what,))


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ('{"errors": ["a", "b"], "warnings": []}', ("a", "b")),
        ('{"ERRORS": ["a"]}', ("a",)),
        ('{"errors": ["a"], "errors": []}', ("a",)),
        ('{"errors": [], "Errors": ["a"]}', ("a",)),
        ('{"errors": [""]}', ("(empty)",)),
        (r'{"errors": ["\ud800"]}', ("(empty)",)),
        (r'{"errors": ["a\u0000\u001b[2Jb\nc"]}', ("a[2Jb c",)),
        ('{"errors": ["<script>alert(1)</script>"]}', ("<script>alert(1)</script>",)),
        ('{"errors": ["' + "x" * 50_000 + '"]}', ("x" * 999 + "…",)),
        (json.dumps({"errors": ["e"] * 10_000}), (*["e"] * 49, "… and 9,951 more")),
    ],
)
def test_probe__report_with_errors(body: str, errors: tuple[str, ...]) -> None:
    with Server(send(response(body))) as server:
        result = ask(server)
    assert (*verdict(result), result.report.errors) == (*ERRORS, errors)


def test_probe__error_of_a_megabyte_is_too_large() -> None:
    with Server(send(report(["x" * 1_000_000]))) as server:
        assert verdict(ask(server)) == TOO_LARGE


def test_probe__hundred_thousand_brackets_are_too_large() -> None:
    with Server(send(response("[" * 100_000))) as server:
        assert verdict(ask(server)) == TOO_LARGE


# Which addresses may be asked.


@pytest.mark.parametrize(
    "options",
    [
        {"ADDRESS_DENY": ["127.0.0.0/8"]},
        {"ADDRESS_DENY": ["10.0.0.0/8", "127.0.0.1/32"]},
        {"ADDRESS_DENY": ["0.0.0.0/0"]},
        {"ADDRESS_ALLOW": ["10.0.0.0/8"]},
        {"ADDRESS_ALLOW": ["127.0.0.2"]},
        {"ADDRESS_ALLOW": ["::1"]},
    ],
)
def test_probe__refuses_addresses(options: dict[str, Any], configure: Configure) -> None:
    configure(**options)
    with Server(send(report())) as server:
        result = ask(server)
    assert verdict(result) == BLOCKED
    assert result.report.errors == (
        "address not allowed: 127.0.0.1 is 127.0.0.1, refused by ADDRESS_DENY or ADDRESS_ALLOW",
    )
    assert result.latency is None
    assert server.connections == 0


@pytest.mark.parametrize(
    "options",
    [
        {"ADDRESS_DENY": []},
        {"ADDRESS_DENY": ["127.0.0.2"]},
        {"ADDRESS_DENY": ["::/0"]},
        {"ADDRESS_ALLOW": ["127.0.0.0/8"]},
        {"ADDRESS_ALLOW": ["127.0.0.0/8"], "ADDRESS_DENY": ["127.0.0.1"]},
        {"ADDRESS_ALLOW": ["10.0.0.0/8", "127.0.0.1"]},
    ],
)
def test_probe__asks_permitted_addresses(options: dict[str, Any], configure: Configure) -> None:
    configure(**options)
    with Server(send(report())) as server:
        assert verdict(ask(server)) == OK


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254", "http://[fe80::1]", "http://[::ffff:169.254.169.254]"]
)
def test_probe__refuses_link_local_addresses_by_default(url: str) -> None:
    with at_most(5):
        assert verdict(ask(url)) == BLOCKED


@pytest.mark.skipif(not servers.has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("network", ["127.0.0.0/8", "::ffff:0:0/96", "::ffff:127.0.0.0/104", "::/0"])
def test_probe__refuses_ipv4_addresses_in_ipv6_clothes(network: str, configure: Configure) -> None:
    with Server(send(report())) as server:
        url = f"http://[::ffff:127.0.0.1]:{server.port}"
        assert verdict(ask(url)) == OK
        configure(ADDRESS_DENY=[network])
        result = ask(url)
        assert server.connections == 1
    assert verdict(result) == BLOCKED


def test_probe__refuses_the_other_names_of_this_machine(configure: Configure) -> None:
    with Server(send(report())) as server:
        assert verdict(ask(f"http://0.0.0.0:{server.port}")) == OK
        configure(ADDRESS_DENY=["127.0.0.0/8"])
        for host in ("0.0.0.0", "[::]", "[::ffff:0.0.0.0]"):
            assert verdict(ask(f"http://{host}:{server.port}")) == BLOCKED
        assert server.connections == 1


def test_probe__refuses_a_name_that_leads_to_a_refused_address(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(ADDRESS_DENY=["127.0.0.0/8"])
    with Server(send(report())) as server:
        addresses = ("127.0.0.1", server.port), ("127.0.0.2", server.port), ("127.0.0.1", server.port)
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(*addresses))
        result = ask("http://paris.example")
        assert server.connections == 0
    assert verdict(result) == BLOCKED
    refused = "127.0.0.1, 127.0.0.2, refused by ADDRESS_DENY or ADDRESS_ALLOW"
    assert result.report.errors == (f"address not allowed: paris.example is {refused}",)


def test_probe__asks_the_permitted_address_of_a_name(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(ADDRESS_DENY=["127.0.0.2"])
    with Server(send(report(["wrong"])), host="127.0.0.2") as denied, Server(send(report())) as server:
        addresses = ("127.0.0.2", denied.port), ("127.0.0.1", server.port)
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(*addresses))
        assert verdict(ask("http://paris.example")) == OK
        assert denied.connections == 0


def test_probe__refuses_addresses_behind_redirects(configure: Configure) -> None:
    configure(ADDRESS_DENY=["127.0.0.2"])
    with Server(send(report()), host="127.0.0.2") as denied:
        with Server(send(redirect(f"{denied.url}/x"))) as server:
            result = ask(server)
        assert denied.connections == 0
    assert verdict(result) == BLOCKED
    assert result.report.errors == (
        "address not allowed: 127.0.0.2 is 127.0.0.2, refused by ADDRESS_DENY or ADDRESS_ALLOW",
    )
    assert result.report.warnings == (led_to(f"{denied.url}/x"),)


# Our own faults.

OWN_FAULT = "proxyhealth failed to probe this proxy; the worker's log says why"


def test_probe__bug_of_ours_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    result = ask("http://paris.example")
    assert (*verdict(result), result.report.errors) == (*INTERNAL, (OWN_FAULT,))
    assert result.latency is None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == f"probe failed proxy={UUID(int=1)} name=paris"
    assert "Traceback" in caplog.text
    assert "ZeroDivisionError: a bug" in caplog.text


@pytest.mark.parametrize(
    "options",
    [{"TIMEOUT": "soon"}, {"ADDRESS_DENY": ["nonsense"]}, {"CA_BUNDLE": "/does/not/exist.pem"}],
)
def test_probe__wrong_setting_is_ours(
    options: dict[str, Any], configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    configure(**options)
    result = ask("https://127.0.0.1:1")
    assert verdict(result) == INTERNAL
    assert "ImproperlyConfigured" in caplog.text


def test_probe__ca_bundle_that_is_no_pem_is_ours(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("nonsense")
    configure(CA_BUNDLE=path)
    assert verdict(ask("https://127.0.0.1:1")) == INTERNAL
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_probe__too_many_open_files_is_ours(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    with servers.listener() as listening, contextlib.ExitStack() as stack:
        url = f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        with contextlib.suppress(OSError):
            while True:
                stack.callback(os.close, os.dup(0))
        result = ask(url)
    assert (*verdict(result), result.report.errors) == (*INTERNAL, (OWN_FAULT,))
    assert "Too many open files" in caplog.text


def test_probe__says_nothing_in_the_log_about_what_proxies_do(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    both = chunked(b"{}").replace(b"\r\nTransfer", b"\r\nContent-Length: 1\r\nTransfer")
    for data in (b"", b"nonsense", response("<html>"), response(status="500 Oops"), both):
        with Server(send(data)) as server:
            ask(server)
    assert caplog.records == []


# What a probe may cost.


@pytest.fixture
def allocated() -> Iterator[Callable[[], int]]:
    tracemalloc.start()

    def peak() -> int:
        """The most bytes there were since the last call, above those that stay."""
        current, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        return peak - current

    yield peak
    tracemalloc.stop()


COSTLY = {
    **FLOODS,
    "header": flood(b"y" * 65536, start=HEAD + b"X: "),
    "headers": flood(b"X: y\r\n" * 1000, start=HEAD),
    "status line": flood(b"y" * 65536, start=b"HTTP/1.1 200 "),
    "early hints": flood(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100),
    "chunk size": flood(b"0" * 65536, start=chunked(end=b"")),
    "not HTTP": flood(b"y" * 65536),
    "fat headers": send(response("{}", *(f"X-{i}: {'y' * 600}" for i in range(90)))),
    "nested": send(response("[" * 65_000)),
    "bomb": send(response(gzip.compress(b" " * 10_000_000), "Content-Encoding: gzip")),
}


@pytest.mark.parametrize("script", COSTLY.values(), ids=COSTLY)
def test_probe__needs_little_memory_whatever_comes(
    script: servers.Script, allocated: Callable[[], int]
) -> None:
    with Server(script) as server:
        ask(server)  # what is built once is not what a probe costs
        allocated()
        ask(server)
        assert allocated() < 1_000_000


@pytest.mark.parametrize("script", [*COSTLY.values(), send(report()), send(b""), send(redirect("/x"))])
def test_probe__leaves_no_socket_and_no_thread_behind(script: servers.Script) -> None:
    with Server(script) as server:
        threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            ask(server)
        deadline = time.monotonic() + 5
        while threading.active_count() > threads or len(os.listdir("/proc/self/fd")) > files:
            assert time.monotonic() < deadline
            time.sleep(0.01)


# Certificates that are going to end.


def in_days(days: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


def ending(ca: trustme.CA, moment: datetime, name: str = "127.0.0.1") -> ssl.SSLContext:
    return servers.server_context(ca, name, not_after=moment)


def test_probe__tells_when_the_certificate_ends(ca: trustme.CA, ca_file: Path, configure: Configure) -> None:
    configure(CA_BUNDLE=ca_file)
    moment = in_days(90)
    with Server(send(report()), tls=ending(ca, moment)) as server:
        result = ask(server)
    assert verdict(result) == OK
    assert result.tls_expires_at == moment
    assert result.report.warnings == ()


@pytest.mark.parametrize(
    ("days", "setting", "left"),
    [(13.5, 14, "in 13 days"), (1.5, 14, "in 1 day"), (0.5, 14, "in 0 days"), (20.5, 30, "in 20 days")],
)
def test_probe__warns_of_a_certificate_that_ends_soon(
    ca: trustme.CA, ca_file: Path, configure: Configure, days: float, setting: float, left: str
) -> None:
    configure(CA_BUNDLE=ca_file, TLS_EXPIRY_WARNING=setting)
    moment = in_days(days)
    with Server(send(report(warnings=["own"])), tls=ending(ca, moment)) as server:
        result = ask(server)
    assert verdict(result) == OK
    ends = f"the TLS certificate ends on {moment:%Y-%m-%d %H:%M} UTC, {left}; renew it"
    assert result.report.warnings == (ends, "own")


@pytest.mark.parametrize(("days", "setting"), [(14.5, 14), (0.5, 0)])
def test_probe__does_not_warn_of_a_certificate_in_good_time(
    ca: trustme.CA, ca_file: Path, configure: Configure, days: float, setting: float
) -> None:
    configure(CA_BUNDLE=ca_file, TLS_EXPIRY_WARNING=setting)
    with Server(send(report()), tls=ending(ca, in_days(days))) as server:
        assert ask(server).report.warnings == ()


def test_probe__warns_of_a_certificate_whatever_the_answer_is(
    ca: trustme.CA, ca_file: Path, configure: Configure
) -> None:
    configure(CA_BUNDLE=ca_file)
    with Server(send(b"HTTP/1.1 500 Oops\r\n\r\n"), tls=ending(ca, in_days(3.5))) as server:
        result = ask(server)
    assert verdict(result) == STATUS_CODE
    assert "in 3 days; renew it" in result.report.warnings[0]


def test_probe__takes_the_first_end_of_all_certificates_on_the_way(
    ca: trustme.CA, ca_file: Path, configure: Configure
) -> None:
    configure(CA_BUNDLE=ca_file)
    soon, late = in_days(5.5), in_days(300)
    with (
        Server(send(report()), tls=ending(ca, late)) as there,
        Server(send(redirect(f"{there.url}/healthz-report")), tls=ending(ca, soon)) as here,
    ):
        result = ask(here)
    assert result.tls_expires_at == soon
    assert [text.split()[0] for text in result.report.warnings] == ["redirected", "the"]


def test_probe__no_certificate_without_tls() -> None:
    with Server(send(report())) as server:
        assert ask(server).tls_expires_at is None


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("64:ff9b::7f00:1", "127.0.0.0/8"),  # NAT64
        ("2002:7f00:1::", "127.0.0.0/8"),  # 6to4
        ("::ffff:127.0.0.1", "127.0.0.0/8"),
        ("64:ff9b::a9fe:a9fe", "169.254.0.0/16"),
    ],
)
def test_probe__an_ipv4_address_within_an_ipv6_address_is_refused(
    configure: Configure, address: str, network: str
) -> None:
    configure(ADDRESS_DENY=[network])
    result = ask(f"http://[{address}]:1")
    assert verdict(result) == BLOCKED
