from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

import proxyhealth
from proxyhealth.probing.probe import probe
from proxyhealth.report import HealthReport
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Status
from tests.probing.asking import (
    HEAD,
    MOMENT,
    OK,
    Configure,
    ask,
    proxy_at,
    verdict,
)
from tests.support import servers
from tests.support.machine import at_most
from tests.support.servers import (
    Server,
    chunked,
    drip,
    redirect,
    report,
    response,
    send,
    send_and_hold,
)

# The request.


def test_probe__unregistered_makes_no_request() -> None:
    result = probe(proxy_at(""), MOMENT)
    assert result == ProxyStatus(proxy_at(""), "", Status.UNREGISTERED, checked_at=MOMENT)
    assert result.latency is None


def test_probe__sends_one_request_for_the_report() -> None:
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
def test_probe__omits_one_trailing_slash(suffix: str, path: str) -> None:
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
def test_probe__host_header_omits_the_default_port(
    url: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(send(report())) as server:
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(("127.0.0.1", server.port)))
        assert verdict(ask(url)) == OK
    assert f"\r\nHost: {host}\r\n".encode() in server.requests[0]


def test_probe__host_header_omits_the_default_https_port(
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
def test_probe__accepts_ipv6_addresses() -> None:
    with Server(send(report()), host="::1") as server:
        result = ask(f"http://[::1]:{server.port}")
    assert verdict(result) == OK
    assert result.proxy_host == f"[::1]:{server.port}"
    assert server.paths == ["/healthz-report"]
    assert f"\r\nHost: [::1]:{server.port}\r\n".encode() in server.requests[0]


def test_probe__resolves_names() -> None:
    with Server(send(report())) as server:
        result = ask(f"http://localhost:{server.port}")
    assert verdict(result) == OK
    assert result.proxy_host == f"localhost:{server.port}"


def test_probe__opens_a_new_connection_each_time() -> None:
    keep_alive = send_and_hold(response("{}", "Connection: keep-alive", "Keep-Alive: timeout=60"))
    with Server(keep_alive) as server:
        assert [verdict(ask(server)) for _ in range(3)] == [OK] * 3
        assert server.connections == 3


def test_probe__follows_a_dns_change_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
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


# The other fields of a status.


def test_probe__status_has_the_given_proxy_and_checked_at() -> None:
    with Server(send(report())) as server:
        result = probe(proxy_at(server.url), MOMENT)
    assert result.checked_at == MOMENT
    assert result.proxy == proxy_at(server.url)
    assert result.proxy_host == server.netloc


def test_probe__default_checked_at_is_now() -> None:
    with Server(send(report())) as server:
        before = datetime.now(UTC)
        result = ask(server)
    assert result.checked_at is not None
    assert before <= result.checked_at <= datetime.now(UTC)
    assert result.checked_at.utcoffset() == timedelta(0)


def test_probe__latency_includes_the_body() -> None:
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
    ],
)
def test_probe__is_ok_for_every_form_of_good_response(data: bytes) -> None:
    with Server(send(data)) as server:
        result = ask(server)
    assert (*verdict(result), result.report) == (*OK, HealthReport())


def test_probe__does_not_wait_for_the_connection_to_close() -> None:
    with Server(send_and_hold(report())) as server, at_most(5):
        assert verdict(ask(server)) == OK
    with Server(send_and_hold(chunked(b"{}"))) as server, at_most(5):
        assert verdict(ask(server)) == OK
