from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from proxyhealth.probing.addresses import _free_look_ups
from proxyhealth.report import HealthReport
from tests.probing.asking import (
    BAD_URL,
    CONNECT,
    DNS,
    DOWN,
    HEAD,
    INTERNAL,
    LATE,
    OK,
    SILENT,
    WAITING,
    Configure,
    ask,
    ask_in_time,
    verdict,
)
from tests.support import servers
from tests.support.machine import at_most
from tests.support.proxies import wait_for
from tests.support.servers import (
    Server,
    drip,
    redirect,
    report,
    send,
    send_and_hold,
    send_and_reset,
)

# Invalid URLs.


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
        ("http://0177.0.0.1", "'0177.0.0.1' is not an IPv4 address"),
        ("http://2130706433", "'2130706433' is not an IPv4 address"),
        ("http://paris.example:0", "its port must be a number from 1 to 65535"),
        ("http://paris .example", "it contains a space, a control character or a backslash"),
        (f"http://{'x' * 300}.example", f"'{'x' * 63}…' is not a host name"),
        (f"http://{'x.' * 150}example", f"'{('x.' * 32)[:63]}…' is not a host name"),
        (f"http://paris.example/{'x' * 10_000}", "it is longer than 2,000 characters"),
        (f"http://{'ü' * 10_000}", "it is longer than 2,000 characters"),
        ("http://paris..example", "'paris..example' is not a host name"),
        ("http://paris.example\r\nX: y", "it contains a space, a control character or a backslash"),
    ],
)
def test_probe__invalid_url(url: str, why: str) -> None:
    result = ask(url)
    assert verdict(result) == BAD_URL
    assert result.report == HealthReport((f"failed to parse proxy url: {why}",))
    assert (result.proxy_host, result.latency) == ("", None)


def test_probe__invalid_internationalised_name() -> None:
    result = ask("http://\u200d.example")
    assert verdict(result) == BAD_URL
    assert "is not an internationalised name: " in result.report.errors[0]


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
        (
            send(b""),
            True,
            f"Remote end closed connection without response {WAITING}; does it expect https:// or HTTP/2?",
        ),
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
def test_probe__connection_lost_within_the_headers(script: servers.Script, read: bool, why: str) -> None:
    with Server(script, read=read) as server:
        result = ask(server)
    assert (*verdict(result), result.report.errors) == (*CONNECT, (DOWN + why,))


@pytest.mark.parametrize("script", [send(b""), send_and_reset(b"")])
def test_probe__connection_lost_before_the_request(script: servers.Script) -> None:
    # It depends on timing which call on the connection fails first.
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
def test_probe__one_byte_per_second_times_out(part: str, configure: Configure) -> None:
    configure(TIMEOUT=1)
    start = b"" if part == "headers" else HEAD + b"Content-Length: 9\r\n\r\n"
    with Server(drip(b"HTTP/1.1 200 OK\r\n\r\n", 1, start=start)) as server:
        assert verdict(ask_in_time(server)) == (SILENT if part == "headers" else LATE)


def test_probe__connection_not_accepted_in_time(timeout: float) -> None:
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


def test_probe__tries_the_second_address_if_the_first_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(send(report())) as server, servers.refusing("127.0.0.2") as port:
        addresses = ("127.0.0.2", port), ("127.0.0.1", server.port)
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(*addresses))
        assert verdict(ask("http://paris.example")) == OK


def test_probe__tries_the_second_address_if_the_first_is_silent(
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


@pytest.mark.skipif(not servers.has_ipv6(), reason="this machine has no IPv6")
def test_probe__tries_ipv4_if_ipv6_is_silent(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(TIMEOUT=2)
    with Server(send(report())) as server, servers.silent("::1") as port, at_most(2.5):
        monkeypatch.setattr(
            socket, "getaddrinfo", servers.resolver(("::1", port), ("127.0.0.1", server.port))
        )
        assert verdict(ask("http://paris.example")) == OK


NOWHERE = ("fe80::1", 80)  # a connection to it needs an interface


def test_probe__skips_addresses_without_a_route(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(TIMEOUT=0.5, ADDRESS_DENY=[])
    with servers.silent() as port, at_most(1):
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(("127.0.0.1", port), NOWHERE))
        result = ask("http://paris.example")
    assert verdict(result) == SILENT
    assert "127.0.0.1" in result.report.errors[0]
    assert "fe80" not in result.report.errors[0]


def test_probe__only_addresses_without_a_route(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(ADDRESS_DENY=[])
    monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(NOWHERE, (NOWHERE[0], 81)))
    assert verdict(ask("http://paris.example")) == CONNECT


def test_probe__names_all_failed_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with servers.refusing("127.0.0.2") as port, servers.refusing("127.0.0.3") as other:
        addresses = [("127.0.0.2", port), ("127.0.0.3", other)]
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(*addresses))
        (message,) = ask("http://paris.example").report.errors
    assert message == (
        f"{DOWN}Connection refused while connecting to 127.0.0.3 port 80 "
        "(before that, 127.0.0.2: Connection refused)"
    )


def test_probe__names_the_silent_address(timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(servers.hold) as server:
        monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(("127.0.0.1", server.port)))
        (message,) = ask("http://paris.example").report.errors
    assert message.endswith("while waiting for paris.example at 127.0.0.1 to answer")


def test_probe__hanging_look_ups_are_limited(timeout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_free_look_ups, "value", threading.BoundedSemaphore(3))
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(60) and [])
    before = set(threading.enumerate())
    with at_most(5 * (timeout + 0.5)):
        results = [ask("http://paris.example") for _ in range(5)]
    assert {verdict(result) for result in results} == {SILENT}
    hanging = set(threading.enumerate()) - before
    assert len(hanging) <= 3
    release.set()
    wait_for(lambda: verdict(ask("http://paris.example")) == DNS, 5, "a look-up that ended frees its place")
    for thread in hanging:  # they release the semaphore of this test
        thread.join(5)
        assert not thread.is_alive()


def test_probe__failure_to_start_a_thread_is_internal(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert verdict(ask("http://paris.example")) == INTERNAL
