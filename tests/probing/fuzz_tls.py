"""Random TLS servers for the probe: one without a fault is ``ok``, and one with a fault never is."""

from __future__ import annotations

import datetime
import socket
import ssl
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import strategies as st

from proxyhealth.snapshot import ProxyStatus
from proxyhealth.statuses import Reason, Status
from tests.probing.fuzz import check_status, configured, timed_probe
from tests.support import servers
from tests.support.certificates import (
    AGREES,
    CLIENT,
    ENCIPHERS,
    GATED,
    MAY_SIGN,
    SERVER,
    Issued,
    authority,
    context_of,
    issue,
)
from tests.support.fuzzing import Edit, edited, edits, findings_of
from tests.support.servers import Server, report

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
HOUR = datetime.timedelta(hours=1)
SIGNS = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
BOTH = x509.ExtendedKeyUsage([*CLIENT, *SERVER])
CODE = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CODE_SIGNING])
OSLO = x509.NameConstraints([x509.DNSName("oslo.example")], None)
EXAMPLE = x509.NameConstraints([x509.DNSName("example")], None)
STRANGE = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
GCM, CBC = "ECDHE+AESGCM:@SECLEVEL=0", "ECDHE+AES+SHA:AES128-GCM-SHA256:@SECLEVEL=0"

# What a server may be like. The first value of each is the simplest.
GOOD: dict[str, list[Any]] = {
    "key": ["P-256", "P-384", "RSA 2048"],
    "names": [
        ["paris.example"],
        ["PARIS.example"],
        ["oslo.example", "paris.example"],
        ["*.example", "paris.example"],
    ],
    "extensions": [[], [SERVER], [BOTH], [SIGNS], [SERVER, SIGNS]],
    "starts_at": [None, NOW - HOUR],
    "expires_at": [None, NOW + HOUR, NOW + 1000 * HOUR],
    "algorithm": [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()],
    "depth": [1, 0, 2],
    "sub key": ["P-256", "P-384", "P-521", "RSA 2048"],
    "sub extensions": [[], [MAY_SIGN], [SERVER], [EXAMPLE]],
    "sub expires_at": [None, NOW + HOUR],
    "sent": ["chain", "with root", "reversed", "with a stranger"],
    "versions": [("TLSv1_2", "TLSv1_3"), ("TLSv1_2", "TLSv1_2"), ("TLSv1_3", "TLSv1_3")],
    "ciphers": [GCM, "ECDHE+CHACHA20:@SECLEVEL=0", "DEFAULT:@SECLEVEL=0"],
    "alpn": [[], ["http/1.1"], ["h2", "http/1.1"], ["h2"]],
    "client": [ssl.CERT_NONE, ssl.CERT_OPTIONAL],
    "tickets": [2, 0, 30],
    "piece": [0, 1000, 7],
    "ends": ["close_notify", "nothing", "nothing and waits"],
}

# Each fault, and the values that make it.
FAULTS: dict[str, dict[str, Any]] = {
    "wrong name": {"names": ["oslo.example"]},
    "name of a parent": {"names": ["example"]},
    "name of a child": {"names": ["*.paris.example"]},
    "wildcard of a part": {"names": ["p*.example"]},
    "address as a name": {"names": ["127.0.0.1"]},
    "common name only": {"names": []},
    "NUL in the name": {"names": ["paris.example\0.oslo.example"]},
    "for clients": {"extensions": [CLIENT]},
    "for code": {"extensions": [CODE]},
    "for Netscape": {"extensions": [GATED]},
    "key for encryption": {"extensions": [ENCIPHERS]},
    "key for agreement": {"extensions": [AGREES]},
    "unknown critical extension": {"extensions": [STRANGE]},
    "expired": {"expires_at": NOW - HOUR},
    "not yet valid": {"starts_at": NOW + HOUR},
    "P-521": {"key": "P-521"},
    "Ed25519": {"key": "Ed25519"},
    "RSA 1024": {"key": "RSA 1024"},
    "SHA-224": {"algorithm": hashes.SHA224()},
    "stranger": {"signer": "stranger"},
    "itself": {"signer": "itself"},
    "expired root": {"root": "expired"},
    "root without CA:TRUE": {"root": "plain"},
    "missing sub": {"sent": "server only", "depth": 1},
    "sub is a server": {"sub ca": False, "depth": 1},
    "path too long": {"path_length": 0, "depth": 2},
    "sub expired": {"sub expires_at": NOW - HOUR, "depth": 1},
    "sub not yet valid": {"sub starts_at": NOW + HOUR, "depth": 1},
    "sub P-224": {"sub key": "P-224", "depth": 1},
    "sub Ed25519": {"sub key": "Ed25519", "depth": 1},
    "sub RSA 1024": {"sub key": "RSA 1024", "depth": 1},
    "sub for clients": {"sub extensions": [CLIENT], "depth": 1},
    "sub for Netscape": {"sub extensions": [GATED], "depth": 1},
    "sub for other names": {"sub extensions": [OSLO], "depth": 1},
    "sub must not sign": {"sub extensions": [SIGNS], "depth": 1},
    "sub SHA-224": {"sub algorithm": hashes.SHA224(), "depth": 1},
    "TLS 1.1": {"versions": ("TLSv1", "TLSv1_1"), "ciphers": "ALL:@SECLEVEL=0"},
    "old ciphers": {"versions": ("TLSv1_2", "TLSv1_2"), "ciphers": CBC},
    "demands a client certificate": {"client": ssl.CERT_REQUIRED},
}


@cache
def key(kind: str, number: int = 0) -> Any:
    """Return a key. It is the same for each number: a new one is slow for RSA."""
    if kind.startswith("RSA"):
        return rsa.generate_private_key(65537, int(kind[4:]))
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(
        {"P-224": ec.SECP224R1, "P-256": ec.SECP256R1, "P-384": ec.SECP384R1}.get(kind, ec.SECP521R1)()
    )


@cache
def root(kind: str) -> Issued:
    match kind:
        case "expired":
            return authority("Expired", expires_at=NOW - HOUR)
        case "plain":
            return issue("Plain", None, MAY_SIGN)
    return authority("Root")


STRANGER = authority("Root")  # of the same name, but another key


def certificate_of(plan: dict[str, Any]) -> Issued:
    """Return the certificate of a server, and what it sends."""
    top = STRANGER if plan.get("signer") == "stranger" else root(plan.get("root", "good"))
    issuer: Issued | None = top
    for number in range(plan["depth"]):
        make = authority if plan.get("sub ca", True) else issue
        limit = {"path_length": plan.get("path_length")} if plan.get("sub ca", True) else {}
        issuer = make(
            f"Sub {number}",
            issuer,
            *plan["sub extensions"],
            key=key(plan["sub key"], number),
            starts_at=plan.get("sub starts_at"),
            expires_at=plan["sub expires_at"],
            algorithm=plan.get("sub algorithm"),
            **limit,
        )
    issued = issue(
        "paris.example",
        None if plan.get("signer") == "itself" else issuer,
        *plan["extensions"],
        names=plan["names"],
        key=key(plan["key"]),
        starts_at=plan["starts_at"],
        expires_at=plan["expires_at"],
        algorithm=None if plan["depth"] and plan["sub key"] == "Ed25519" else plan["algorithm"],
    )
    server, *above = issued.chain
    sent = {
        "with root": (server, *above, top.certificate),
        "reversed": (server, *reversed(above)),
        "with a stranger": (server, STRANGER.certificate, *above),
        "server only": (server,),
    }.get(plan["sent"], issued.chain)
    return issued._replace(chain=sent)


def context_for(plan: dict[str, Any]) -> ssl.SSLContext:
    """Return the context of a server."""
    context = context_of(certificate_of(plan), plan["ciphers"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TLS 1.1
        context.minimum_version, context.maximum_version = (ssl.TLSVersion[name] for name in plan["versions"])
    context.verify_mode = plan["client"]
    context.num_tickets = plan["tickets"]
    if plan["alpn"]:
        context.set_alpn_protocols(plan["alpn"])
    return context


class Peer:
    """The server's side of one connection. Its bytes can be changed before they are sent."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, piece: int, changes: dict[int, list[Edit]]
    ) -> None:
        self._sock = sock
        self._piece = piece
        self._changes = changes  # by the number of the flight
        self._flights = 0
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def run(self, action: Callable[..., Any], *args: Any) -> Any:
        """Call a method of ``tls`` until it is complete."""
        while True:
            try:
                return action(*args)
            except ssl.SSLWantReadError:
                self.flush()
                data = self._sock.recv(65536)
                if not data:
                    raise ConnectionResetError from None
                self._incoming.write(data)
            finally:
                self.flush()

    def flush(self) -> None:
        if data := self._outgoing.read():
            data = edited(data, self._changes.get(self._flights, []))
            self._flights += 1
            step = self._piece or len(data)
            for begin in range(0, len(data), step or 1):
                self._sock.sendall(data[begin : begin + step])


class Fuzzer:
    """A server that runs the script of the current input for each connection, and the probes of it."""

    def __init__(self) -> None:
        self._script: servers.Script = lambda sock: None
        self._count = 0

    @contextmanager
    def serving(self) -> Iterator[None]:
        with (
            tempfile.NamedTemporaryFile() as bundle,
            Server(lambda sock: self._script(sock), read=False) as server,
        ):
            bundle.write(b"".join(root(kind).pem for kind in ("good", "expired", "plain")))
            bundle.flush()
            self._url = f"https://paris.example:{server.port}"
            addresses = servers.resolver(("127.0.0.1", server.port))
            with configured(TIMEOUT=2, CA_BUNDLE=bundle.name), mock.patch("socket.getaddrinfo", addresses):
                yield

    def probe(self, script: servers.Script) -> ProxyStatus:
        self._script = script
        status = timed_probe(self._url)
        check_status(status)
        return status

    def probe_tls(self, plan: dict[str, Any], changes: dict[int, list[Edit]]) -> tuple[ProxyStatus, bool]:
        """Return the result of a probe, and whether it has the report that the server sent."""
        self._count += 1
        context, word = context_for(plan), f"report {self._count}"

        def script(sock: socket.socket) -> None:
            sock.settimeout(0.1 if changes else 5)
            peer = Peer(sock, context, plan["piece"], changes)
            try:
                peer.run(peer.tls.do_handshake)
                request = b""
                while b"\r\n\r\n" not in request:
                    request += peer.run(peer.tls.read, 65536)
                peer.run(peer.tls.write, report(warnings=[word]))
                if plan["ends"] == "close_notify":
                    with suppress(ssl.SSLWantReadError):
                        peer.tls.unwrap()
                    peer.flush()
                if plan["ends"] == "nothing and waits":
                    sock.recv(1)
            except ssl.SSLError:
                peer.flush()  # the alert

        status = self.probe(script)
        return status, status.report.warnings[-1:] == (word,) and not status.report.errors

    def check_faultless(self, good: dict[str, Any]) -> None:
        """A server without a fault is ``ok``, and its certificate that expires first is known."""
        status, has_report = self.probe_tls(good, {})
        assert status.status is Status.OK, status
        assert has_report, status
        dates = [good["expires_at"], *([good["sub expires_at"]] if good["depth"] else [])]
        assert status.tls_expires_at == min((date for date in dates if date), default=FOREVER), status

    def check_fault(self, good: dict[str, Any], fault: str) -> None:
        """A server with one fault is never ``ok``."""
        status, _ = self.probe_tls({**good, **FAULTS[fault]}, {})
        assert status.status is Status.UNREACHABLE, status
        late = fault == "demands a client certificate"  # TLS 1.3 says so after the handshake
        assert status.reason is Reason.TLS or (late and status.reason is Reason.CONNECT), status

    def check_changed(self, good: dict[str, Any], changes: dict[int, list[Edit]]) -> None:
        """Whatever changes the bytes on their way, no report arrives but the one that was sent."""
        status, has_report = self.probe_tls(good, changes)
        expected = {Reason.TLS, Reason.CONNECT, Reason.TIMEOUT, Reason.PROTOCOL, Reason.TRUNCATED}
        assert has_report if status.status is Status.OK else status.reason in expected, status

    def check_garbage(self, pieces: list[bytes], resets: bool) -> None:
        """A server that speaks no TLS, or stops, is unreachable."""

        def script(sock: socket.socket) -> None:
            sock.recv(65536)
            for piece in pieces:
                sock.sendall(piece)
            if resets:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        status = self.probe(script)
        assert status.status is Status.UNREACHABLE, status
        assert status.reason in (Reason.TLS, Reason.CONNECT), status


FOREVER = datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC)

alerts = st.builds(
    lambda level, code: bytes([21, 3, 3, 0, 2, level, code]), st.integers(0, 3), st.integers(0, 121)
)
records = st.builds(
    lambda kind, version, body, lie: bytes([kind]) + version + (len(body) + lie).to_bytes(2, "big") + body,
    st.sampled_from([22, 20, 21, 23, 24, 0, 255]),
    st.sampled_from([b"\3\3", b"\3\1", b"\3\4", b"\2\0", b"\xff\xff"]),
    st.binary(max_size=60) | st.just(b"\2\0\0\4aaaa") | st.just(b"x" * 20_000),
    st.sampled_from([0, 1, 255]),
)
texts = st.sampled_from(
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b"", b"\0" * 5, b"220 mail\r\n"]
)


def fuzz_tls(seed: int, count: int) -> Iterator[str]:
    """Yield the findings of ``count`` servers in all."""
    fuzzer = Fuzzer()
    good = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in GOOD.items()})
    changes = st.dictionaries(
        st.integers(0, 4), edits(b"\x15\3\3\0\2\1\0", b"\x17\3\3\0\0"), min_size=1, max_size=2
    )
    garbage = st.lists(alerts | records | texts | st.binary(max_size=30), max_size=4)
    kinds: list[tuple[Any, tuple[Any, ...], float]] = [
        (fuzzer.check_faultless, (good,), 0.25),
        (fuzzer.check_fault, (good, st.sampled_from(sorted(FAULTS))), 0.35),
        (fuzzer.check_changed, (good, changes), 0.2),
        (fuzzer.check_garbage, (garbage, st.booleans()), 0.2),
    ]
    with fuzzer.serving():
        for check, inputs, share in kinds:
            yield from findings_of(check, *inputs, seed=seed, count=max(1, int(count * share)))
