"""The trace of a probe: its requests, and the phase in which each of them ended."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxyhealth import __version__
from proxyhealth.probing.probe import probe
from proxyhealth.probing.tls import tls_context
from proxyhealth.probing.turns import Turn, Turns
from proxyhealth.snapshot import ProxyStatus
from proxyhealth.storage import traces
from proxyhealth.trace import ProbeTrace, encode
from tests.probing.asking import HEAD, MOMENT, Configure, ask, proxy_at
from tests.support import servers
from tests.support.servers import Server, after, hold, redirect, report, send, send_and_hold, sequence

HTTP = ["look_up", "connect", "first_byte", "headers", "body"]
HTTPS = ["look_up", "connect", "tls", "first_byte", "headers", "body"]
RESPONSE = HEAD + b"Content-Length: 100\r\n\r\n"


@pytest.fixture
def timeout(configure: Configure) -> float:
    configure(TIMEOUT=0.2)
    return 0.2


def text(result: ProxyStatus) -> str:
    assert result.course
    return encode(result.course)


def traced(result: ProxyStatus) -> ProbeTrace:
    trace = ProbeTrace.from_json(text(result).encode())
    assert (trace.checked_at, trace.status, trace.reason) == (
        result.checked_at,
        result.status,
        result.reason,
    )
    return trace


def names(trace: ProbeTrace) -> list[list[str]]:
    return [[phase.name for phase in request.phases] for request in trace.requests]


def test_trace__of_a_good_probe_has_every_phase() -> None:
    with Server(send(report())) as server:
        trace = traced(ask(server))
    (request,) = trace.requests
    assert names(trace) == [HTTP]
    assert (trace.error, trace.failed_in) == ("", "")
    assert (request.url, request.address) == (f"{server.url}/healthz-report", "127.0.0.1")
    assert (request.status_code, request.tls_version, request.tls_expires_at) == (200, "", None)


def test_trace__request_is_what_the_server_received() -> None:
    with Server(send(report())) as server:
        (request,) = traced(ask(server)).requests
    assert request.sent.splitlines() == server.requests[0].decode().rstrip("\r\n").split("\r\n")
    assert request.sent.splitlines()[-1] == f"User-Agent: proxyhealth/{__version__}"


def test_trace__of_tls_has_version_and_expiry(ca: trustme.CA, ca_file: Path, configure: Configure) -> None:
    configure(CA_BUNDLE=str(ca_file))
    expiry = datetime.now(UTC).replace(microsecond=0) + timedelta(days=90)
    context = servers.server_context(ca, "127.0.0.1", not_after=expiry)
    with Server(send(report()), tls=context) as server:
        trace = traced(ask(server))
    assert names(trace) == [HTTPS]
    assert (trace.requests[0].tls_version, trace.requests[0].tls_expires_at) == ("TLSv1.3", expiry)


@pytest.mark.parametrize(
    ("script", "phase"),
    [(hold, "first_byte"), (send_and_hold(HEAD), "headers"), (send_and_hold(RESPONSE), "body")],
)
def test_trace__hang_is_in_its_phase(script: Any, phase: str, timeout: float) -> None:
    with Server(script) as server:
        trace = traced(ask(server))
    assert trace.failed_in == phase
    last = trace.requests[0].phases[-1]
    assert timeout * 0.8 < last.seconds < timeout + 0.3
    assert f"within {timeout:g} s" in trace.error


def test_trace__hang_of_the_look_up(monkeypatch: pytest.MonkeyPatch, timeout: float) -> None:
    end = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: end.wait(10) and [])
    trace = traced(ask("http://paris.example"))
    end.set()
    assert (names(trace), trace.failed_in) == ([["look_up"]], "look_up")
    assert trace.seconds >= timeout * 0.9
    assert trace.requests[0].sent == ""


def test_trace__hang_of_the_connection(timeout: float) -> None:
    with servers.silent() as port:
        trace = traced(ask(f"http://127.0.0.1:{port}"))
    assert (trace.failed_in, trace.requests[0].address) == ("connect", "127.0.0.1")
    assert trace.requests[0].phases[-1].seconds >= timeout * 0.9


def test_trace__hang_of_the_handshake(timeout: float) -> None:
    tls_context("")  # its first use takes longer
    with Server(hold, read=False) as server:
        trace = traced(ask(f"https://{server.netloc}"))
    assert (names(trace), trace.failed_in) == ([["look_up", "connect", "tls"]], "tls")
    assert "in the TLS handshake" in trace.error


def test_trace__unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", servers.resolver())
    assert traced(ask("http://paris.example")).failed_in == "look_up"


def test_trace__blocked_address_is_not_connected_to(configure: Configure) -> None:
    configure(ADDRESS_DENY=["127.0.0.0/8"])
    with Server(send(report())) as server:
        trace = traced(ask(server))
        assert server.connections == 0
    assert names(trace) == [["look_up"]]
    assert trace.error.startswith("address not allowed: ")


def test_trace__refused_connection() -> None:
    with servers.refusing() as port:
        trace = traced(ask(f"http://127.0.0.1:{port}"))
    assert trace.failed_in == "connect"
    assert "Connection refused" in trace.error
    assert (trace.requests[0].sent, trace.requests[0].status_code) == ("", 0)


@contextlib.contextmanager
def two_addresses(monkeypatch: pytest.MonkeyPatch, server: Server) -> Iterator[None]:
    with servers.refusing("127.0.0.2") as port:
        addresses = servers.resolver(("127.0.0.2", port), ("127.0.0.1", server.port))
        monkeypatch.setattr(socket, "getaddrinfo", addresses)
        yield


def test_trace__each_address_is_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(send(report())) as server, two_addresses(monkeypatch, server):
        trace = traced(ask("http://paris.example"))
    connections = [phase.address for phase in trace.requests[0].phases if phase.name == "connect"]
    assert connections == ["127.0.0.2", "127.0.0.1"]
    assert trace.requests[0].address == "127.0.0.1"


def test_trace__certificate_that_is_refused(ca: trustme.CA) -> None:
    with Server(send(report()), tls=servers.server_context(ca, "127.0.0.1")) as server:
        trace = traced(ask(server))
    assert (trace.failed_in, trace.reason) == ("tls", "tls")
    assert "certificate not accepted" in trace.error
    assert trace.requests[0].sent == ""


def test_trace__redirects_are_further_requests_without_queries() -> None:
    script = sequence(send(redirect("/login?token=hunter2#x")), send(report()))
    with Server(script) as server:
        result = ask(server)
    first, second = traced(result).requests
    assert [phase.name for phase in first.phases] == HTTP[:-1]
    assert [phase.name for phase in second.phases] == HTTP
    assert (first.status_code, second.status_code) == (302, 200)
    assert second.url == f"{server.url}/login?…"
    assert second.sent.startswith("GET /login?… HTTP/1.1\n")
    assert server.paths[1] == "/login?token=hunter2"
    assert "hunter2" not in text(result)


@pytest.mark.parametrize("location", ["http://me:hunter2@127.0.0.1/", "http://me:hunter2@[::1"])
def test_trace__password_of_a_redirect_is_not_in_it(location: str) -> None:
    with Server(send(redirect(location))) as server:
        result = ask(server)
    assert traced(result).failed_in == "headers"
    assert "hunter2" not in text(result)


def test_trace__endless_redirects_fit_into_a_value() -> None:
    with Server(send(redirect(f"/{'x' * 390}?{'y' * 5}"))) as server:
        result = ask(server)
    assert len(traced(result).requests) == 5
    assert len(text(result).encode()) < traces._MAX_BYTES / 2


@pytest.mark.parametrize(
    ("response", "status_code", "error"),
    [
        (servers.response("<html>"), 200, "failed to decode health report: "),
        (servers.response("\u202eoops", status="503 No"), 503, "unexpected status"),
    ],
)
def test_trace__bad_report_failed_in_the_body(response: bytes, status_code: int, error: str) -> None:
    with Server(send(response)) as server:
        trace = traced(ask(server))
    assert (names(trace), trace.failed_in) == ([HTTP], "body")
    assert trace.requests[0].status_code == status_code
    assert trace.error.startswith(error)
    assert "\u202e" not in trace.error


def test_trace__errors_of_a_valid_report_are_none_of_the_probe() -> None:
    with Server(send(report(["kaputt"]))) as server:
        trace = traced(ask(server))
    assert (trace.status, trace.error, trace.failed_in) == ("unhealthy", "", "")


def test_trace__interim_response_is_followed() -> None:
    with Server(send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + report())) as server:
        trace = traced(ask(server))
    assert (names(trace), trace.requests[0].status_code) == ([HTTP], 200)


def test_trace__of_an_invalid_url_has_no_request() -> None:
    trace = traced(ask("http://me:hunter2@paris.example"))
    assert (trace.requests, trace.failed_in, trace.seconds) == ((), "", 0)
    assert "hunter2" not in trace.error


def test_trace__without_a_url_is_empty() -> None:
    assert ask("").course is None


def test_trace__of_our_own_fault(configure: Configure) -> None:
    configure(CA_BUNDLE="/does/not/exist")
    assert traced(ask("https://127.0.0.1:1")).error.startswith("proxyhealth failed to probe this proxy")


def test_trace__durations_are_the_latency() -> None:
    with Server(after(0.15, send(report()))) as server:
        result = ask(server)
    trace = traced(result)
    assert result.latency is not None
    assert 0.15 <= trace.requests[0].phases[2].seconds <= trace.seconds <= result.latency


def test_trace__wait_for_other_probes_is_not_in_it() -> None:
    """The time until its turn is not that of its proxy."""
    shared = Turns()
    taken = threading.Event()

    def occupy() -> None:
        with Turn(shared):
            taken.set()
            time.sleep(0.2)

    def respond(sock: socket.socket) -> None:
        threading.Thread(target=occupy).start()
        taken.wait(5)
        sock.sendall(report())

    turn = Turn(shared)
    with Server(respond) as server, turn:
        trace = traced(probe(proxy_at(server.url), MOMENT, turn))
    assert turn.waited > 0.1
    assert trace.seconds < 0.1
