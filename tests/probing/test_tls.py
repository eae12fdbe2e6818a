from __future__ import annotations

import os
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from proxyhealth.statuses import Status
from tests.probing.asking import (
    CONNECT,
    DOWN,
    HEAD,
    LATE,
    OK,
    PROTOCOL,
    SILENT,
    STATUS_CODE,
    TLS,
    Configure,
    ask,
    ask_in_time,
    verdict,
)
from tests.support import servers
from tests.support.machine import at_most
from tests.support.servers import (
    Server,
    drip,
    redirect,
    report,
    send,
    send_and_hold,
    send_and_reset,
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
        assert certificate_problem(server).startswith("certificate has expired; that of the server “")


def test_probe__self_signed_certificate(ca: trustme.CA) -> None:
    with Server(send(report()), tls=servers.self_signed_context(ca)) as server:
        assert certificate_problem(server).startswith("self-signed certificate")


def test_probe__certificate_of_another_name(ca: trustme.CA, ca_file: Path, configure: Configure) -> None:
    configure(CA_BUNDLE=ca_file)
    with Server(send(report()), tls=servers.server_context(ca, "paris.example")) as server:
        assert certificate_problem(server).startswith("IP address mismatch")
        assert certificate_problem(server, "localhost").startswith("Hostname mismatch")


def test_probe__new_ca_bundle_applies_without_a_restart(
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
        f"{DOWN}the server speaks no TLS (while {where}); should the URL begin with http://?",
    )


def test_probe__tls_on_a_plain_port(ca: trustme.CA) -> None:
    with Server(send(report()), tls=servers.server_context(ca, "127.0.0.1")) as server:
        result = ask(f"http://127.0.0.1:{server.port}")
    # Some servers send an alert first, others only close the connection.
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
    # It depends on timing whether a close looks like a reset.
    with Server(script, read=False) as server:
        result = ask(f"https://127.0.0.1:{server.port}")
    assert verdict(result) in (TLS, CONNECT)
    assert result.report.errors[0].startswith(DOWN)


@pytest.mark.parametrize(
    ("alert", "hint"),
    [
        (40, "demand a client certificate"),
        (42, "the server may demand a client certificate"),
        (116, "the server may demand a client certificate"),
        (71, "the server may lack the ciphers of browsers"),
        (70, "the server may lack TLS 1.2 and 1.3"),
        (80, "the server may have no certificate for this host name"),
        (112, "the server may have no certificate for this host name"),
        (0, "should the URL begin with http://?"),  # close_notify
    ],
)
def test_probe__alert_in_the_tls_handshake_is_explained(alert: int, hint: str) -> None:
    def script(sock: socket.socket) -> None:
        sock.recv(65536)  # unread bytes would turn the close into a reset
        sock.sendall(bytes([0x15, 3, 3, 0, 2, 1 if alert == 0 else 2, alert]))

    with Server(script, read=False) as server:
        result = ask(f"https://127.0.0.1:{server.port}")
    assert verdict(result) == TLS
    assert hint in result.report.errors[0]


def test_probe__client_certificate_demanded_after_the_handshake(
    ca: trustme.CA, ca_file: Path, configure: Configure
) -> None:
    configure(CA_BUNDLE=ca_file)
    tls = servers.server_context(ca, "127.0.0.1")
    tls.verify_mode = ssl.CERT_REQUIRED
    with Server(send(report()), tls=tls) as server:
        result = ask(server)
    # With TLS 1.3, the alert may be lost in a reset.
    assert verdict(result) in (TLS, CONNECT)
    assert (
        verdict(result) == CONNECT or "the server may demand a client certificate" in result.report.errors[0]
    )


def test_probe__timeout_applies_to_tls(ca: trustme.CA, ca_file: Path, configure: Configure) -> None:
    configure(CA_BUNDLE=ca_file, TIMEOUT=0.5)
    tls = servers.server_context(ca, "127.0.0.1")
    with Server(servers.hold, tls=tls) as server:
        assert verdict(ask_in_time(server)) == SILENT
    with Server(drip(b"{}" * 99, 0.05, start=HEAD + b"\r\n"), tls=tls) as server:
        assert verdict(ask_in_time(server)) == LATE


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


# Expiry of certificates.


def in_days(days: float) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


def expiring(ca: trustme.CA, moment: datetime, name: str = "127.0.0.1") -> ssl.SSLContext:
    return servers.server_context(ca, name, not_after=moment)


def test_probe__reports_the_expiry(ca: trustme.CA, ca_file: Path, configure: Configure) -> None:
    configure(CA_BUNDLE=ca_file)
    moment = in_days(90)
    with Server(send(report()), tls=expiring(ca, moment)) as server:
        result = ask(server)
    assert verdict(result) == OK
    assert result.tls_expires_at == moment
    assert result.report.warnings == ()


@pytest.mark.parametrize(
    ("days", "setting", "left"),
    [(13.5, 14, "in 13 days"), (1.5, 14, "in 1 day"), (0.5, 14, "in 0 days"), (20.5, 30, "in 20 days")],
)
def test_probe__certificate_warning_before_expiry(
    ca: trustme.CA, ca_file: Path, configure: Configure, days: float, setting: float, left: str
) -> None:
    configure(CA_BUNDLE=ca_file, TLS_EXPIRY_WARNING=setting)
    moment = in_days(days)
    with Server(send(report(warnings=["own"])), tls=expiring(ca, moment)) as server:
        result = ask(server)
    assert verdict(result) == OK
    expires = f"the TLS certificate expires on {moment:%Y-%m-%d %H:%M} UTC, {left}; renew it"
    assert result.report.warnings == (expires, "own")


@pytest.mark.parametrize(("days", "setting"), [(14.5, 14), (0.5, 0)])
def test_probe__no_certificate_warning_long_before_expiry(
    ca: trustme.CA, ca_file: Path, configure: Configure, days: float, setting: float
) -> None:
    configure(CA_BUNDLE=ca_file, TLS_EXPIRY_WARNING=setting)
    with Server(send(report()), tls=expiring(ca, in_days(days))) as server:
        assert ask(server).report.warnings == ()


def test_probe__certificate_warning_with_an_error_response(
    ca: trustme.CA, ca_file: Path, configure: Configure
) -> None:
    configure(CA_BUNDLE=ca_file)
    with Server(send(b"HTTP/1.1 500 Oops\r\n\r\n"), tls=expiring(ca, in_days(3.5))) as server:
        result = ask(server)
    assert verdict(result) == STATUS_CODE
    assert "in 3 days; renew it" in result.report.warnings[0]


def test_probe__reports_the_earliest_expiry_of_all_redirects(
    ca: trustme.CA, ca_file: Path, configure: Configure
) -> None:
    configure(CA_BUNDLE=ca_file)
    soon, late = in_days(5.5), in_days(300)
    with (
        Server(send(report()), tls=expiring(ca, late)) as there,
        Server(send(redirect(f"{there.url}/healthz-report")), tls=expiring(ca, soon)) as here,
    ):
        result = ask(here)
    assert result.tls_expires_at == soon
    assert [text.split()[0] for text in result.report.warnings] == ["redirected", "the"]


def test_probe__no_certificate_without_tls() -> None:
    with Server(send(report())) as server:
        assert ask(server).tls_expires_at is None


@pytest.mark.parametrize("script", [servers.hold, send(b""), send(b"nonsense")])
def test_probe__reports_the_certificate_without_a_response(
    ca: trustme.CA, ca_file: Path, configure: Configure, script: servers.Script
) -> None:
    configure(CA_BUNDLE=ca_file, TIMEOUT=1)
    moment = in_days(3.5)
    with Server(script, tls=expiring(ca, moment)) as server:
        result = ask(server)
    assert result.status is Status.UNREACHABLE
    assert result.tls_expires_at == moment
    assert "in 3 days; renew it" in result.report.warnings[0]
