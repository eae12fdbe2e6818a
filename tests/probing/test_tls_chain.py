from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest

from proxyhealth.snapshot import ProxyStatus
from tests.probing.asking import DOWN, OK, PROTOCOL, TLS, Configure, ask, verdict
from tests.probing.test_not_http import HTTP2_SETTINGS
from tests.support.certificates import Issued, authority, context_of, issue
from tests.support.servers import Server, report, send

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
Ask = Callable[[Issued, Issued], ProxyStatus]


def in_days(days: float) -> datetime.datetime:
    return NOW + datetime.timedelta(days=days)


@pytest.fixture
def ask_with(configure: Configure, tmp_path: Path) -> Ask:
    def ask_with(issued: Issued, trusted: Issued) -> ProxyStatus:
        configure(CA_BUNDLE=trusted.write(tmp_path / "ca.pem"))
        with Server(send(report()), tls=context_of(issued)) as server:
            return ask(server)

    return ask_with


# The certificate of the chain that expires first.


def test_expiry__is_that_of_the_intermediate_if_it_is_first(ask_with: Ask) -> None:
    root = authority("Root")
    sub = authority("Sub", root, expires_at=in_days(5.5))
    result = ask_with(issue("x", sub, names=["127.0.0.1"], expires_at=in_days(9)), root)
    assert verdict(result) == OK
    assert result.tls_expires_at == in_days(5.5)
    when = f"{in_days(5.5):%Y-%m-%d %H:%M} UTC, in 5 days"
    assert result.report.warnings == (
        f"the TLS certificate of the authority “Sub” expires on {when}; renew it",
    )


def test_expiry__is_that_of_the_root_if_it_is_first(ask_with: Ask) -> None:
    root = authority("Root", expires_at=in_days(1.5))
    sub = authority("Sub", root, expires_at=in_days(5))
    result = ask_with(issue("x", sub, names=["127.0.0.1"]), root)
    assert result.tls_expires_at == in_days(1.5)
    assert "the authority “Root” expires on" in result.report.warnings[0]


def test_expiry__ignores_certificates_outside_of_the_chain(ask_with: Ask) -> None:
    root = authority("Root")
    unused = authority("Unused", root, expires_at=in_days(2))
    issued = issue("x", root, names=["127.0.0.1"], expires_at=in_days(90))
    result = ask_with(issued._replace(chain=(issued.certificate, unused.certificate)), root)
    assert (result.tls_expires_at, result.report.warnings) == (in_days(90), ())


# An error names the certificate.


@pytest.mark.parametrize("place", ["the server “x”", "the authority “Sub”", "the authority “Root”"])
def test_expired__the_error_names_the_certificate(ask_with: Ask, place: str) -> None:
    def end(owner: str) -> datetime.datetime | None:
        return in_days(-2) if owner == place else None

    root = authority("Root", expires_at=end("the authority “Root”"))
    sub = authority("Sub", root, expires_at=end("the authority “Sub”"))
    result = ask_with(issue("x", sub, names=["127.0.0.1"], expires_at=end("the server “x”")), root)
    assert verdict(result) == TLS
    assert result.tls_expires_at is None
    assert result.report.errors[0].endswith(
        f": certificate has expired; that of {place} expired on {in_days(-2):%Y-%m-%d %H:%M} UTC"
    )


def test_expired__the_error_names_one_that_starts_later(ask_with: Ask) -> None:
    root = authority("Root")
    sub = authority("Sub", root, starts_at=in_days(2))
    result = ask_with(issue("x", sub, names=["127.0.0.1"]), root)
    assert verdict(result) == TLS
    assert result.report.errors[0].endswith(
        f"; that of the authority “Sub” starts on {in_days(2):%Y-%m-%d %H:%M} UTC"
    )


def test_expired__the_error_is_limited_and_clean(ask_with: Ask) -> None:
    name = "x\x1b[31m\u202e" * 7
    root = authority("Root")
    subs = [root]
    for _ in range(6):
        subs.append(authority(name, subs[-1], expires_at=in_days(-2)))
    (message,) = ask_with(
        issue(name, subs[-1], names=["127.0.0.1"], expires_at=in_days(-2)), root
    ).report.errors
    assert len(message) <= len(DOWN) + 500
    assert "\x1b" not in message
    assert "\u202e" not in message


# A server with HTTP/2 alone.


def test_http2__after_a_handshake_is_named(configure: Configure, tmp_path: Path) -> None:
    root = authority("Root")
    configure(CA_BUNDLE=root.write(tmp_path / "ca.pem"))
    tls = context_of(issue("x", root, names=["127.0.0.1"]))
    tls.set_alpn_protocols(["h2"])
    with Server(send(HTTP2_SETTINGS), tls=tls) as server:
        result = ask(server)
    assert verdict(result) == PROTOCOL
    assert result.report.errors[0].endswith("; the server speaks only HTTP/2, but the probe needs HTTP/1.1")


def test_http2__refused_alpn_is_named() -> None:
    alert = b"\x15\x03\x03\x00\x02\x02\x78"  # fatal: no_application_protocol
    with Server(send(alert), read=False) as server:
        result = ask(f"https://127.0.0.1:{server.port}")
    assert verdict(result) == TLS
    assert result.report.errors[0].endswith("; the server refuses HTTP/1.1 and probably speaks only HTTP/2")
