"""Our judgement of TLS is that of the users of a proxy: one test for each choice of ``probing/tls.py``."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa

from tests.probing.asking import DOWN, OK, TLS, Configure, ask, verdict
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
    edited,
    issue,
)
from tests.support.servers import Server, report, send

ROOT = authority("Root")
SUB = authority("Sub", ROOT)
RSA = rsa.generate_private_key(65537, 2048)

Judge = Callable[..., tuple[Any, str]]


@pytest.fixture
def judge(configure: Configure, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Judge:
    """Return a function that probes a server with a certificate, and returns verdict and message."""

    def judge(
        issued: Issued, host: str = "paris.example", trusted: Issued = ROOT, tls: Any = None
    ) -> tuple[Any, str]:
        configure(CA_BUNDLE=trusted.write(tmp_path / "ca.pem"))
        with Server(send(report()), tls=tls or context_of(issued)) as server:
            monkeypatch.setattr(socket, "getaddrinfo", servers.resolver(("127.0.0.1", server.port)))
            result = ask(f"https://{host}:{server.port}")
        return verdict(result), " ".join(result.report.errors)

    return judge


# Names.


@pytest.mark.parametrize(
    ("names", "host"),
    [
        (["paris.example"], "paris.example"),
        (["PARIS.Example"], "paris.example"),
        (["oslo.example", "paris.example"], "paris.example"),
        (["paris.example"], "paris.example."),
        (["*.paris.example"], "a.paris.example"),
        (["xn--bcher-kva.example"], "bücher.example"),
        (["127.0.0.1"], "127.0.0.1"),
    ],
)
def test_name__accepted(judge: Judge, names: Sequence[str], host: str) -> None:
    assert judge(issue("x", ROOT, names=names), host) == (OK, "")


@pytest.mark.parametrize(
    ("names", "common_name", "host"),
    [
        ([], "localhost", "localhost"),
        ([], "paris.example", "paris.example"),
        ([], "*.paris.example", "a.paris.example"),
        ([], "127.0.0.1", "127.0.0.1"),
        (["me@paris.example"], "paris.example", "paris.example"),
        (["127.0.0.1"], "paris.example", "paris.example"),
        (["oslo.example"], "paris.example", "paris.example"),
        (["DNS:127.0.0.1"], "x", "127.0.0.1"),
        (["*.paris.example"], "x", "paris.example"),
        (["*.paris.example"], "x", "a.b.paris.example"),
        (["a*.paris.example"], "x", "ab.paris.example"),
        (["*a.paris.example"], "x", "ba.paris.example"),
        (["a.*.example"], "x", "a.paris.example"),
        (["*"], "x", "localhost"),
        (["*.example"], "x", "paris.example"),
        (["paris.example.com"], "x", "paris.example"),
    ],
)
def test_name__refused(judge: Judge, names: Sequence[str], common_name: str, host: str) -> None:
    result, message = judge(issue(common_name, ROOT, names=names), host)
    assert result == TLS
    assert "mismatch" in message


def test_name__refusal_says_that_the_common_name_does_not_count(judge: Judge) -> None:
    _, message = judge(issue("localhost", ROOT), "localhost")
    assert message.startswith(f"{DOWN}certificate not accepted while connecting to 127.0.0.1 port ")
    assert message.endswith("; it has no host in its subjectAltName, and the common name does not count")


def test_name__refusal_lists_the_names(judge: Judge) -> None:
    _, message = judge(issue("x", ROOT, names=["oslo.example", "127.0.0.9", *["x" * 60 + ".example"] * 5]))
    assert "; it is for oslo.example, 127.0.0.9, xxx" in message
    assert len(message) < 500


# Chains.


@pytest.mark.parametrize(
    ("issuer", "trusted"),
    [(SUB, ROOT), (SUB, SUB), (authority("Lone", SUB), SUB)],
    ids=["root", "intermediate", "upper intermediate"],
)
def test_chain__accepted(judge: Judge, issuer: Issued, trusted: Issued) -> None:
    assert judge(issue("x", issuer, names=["paris.example"]), trusted=trusted) == (OK, "")


def test_chain__trusted_server_certificate_is_accepted(judge: Judge) -> None:
    own = issue("x", None, names=["paris.example"])
    assert judge(own, trusted=own) == (OK, "")


UNFIT = {
    "missing intermediate": issue("x", SUB._replace(chain=()), names=["paris.example"]),
    "issuer is a server": issue("x", issue("y", SUB, names=["oslo.example"]), names=["paris.example"]),
    "issuer has no basicConstraints": issue("x", issue("y", SUB, MAY_SIGN), names=["paris.example"]),
    "path too long": issue("x", authority("y", authority("z", ROOT, path_length=0)), names=["paris.example"]),
    "server of another purpose": issue("x", ROOT, CLIENT, names=["paris.example"]),
    "authority of another purpose": issue("x", authority("y", ROOT, CLIENT), names=["paris.example"]),
}


@pytest.mark.parametrize("name", UNFIT)
def test_chain__refused(judge: Judge, name: str) -> None:
    assert judge(UNFIT[name])[0] == TLS


@pytest.mark.parametrize("extensions", [[], [SERVER]])
def test_purpose__accepted(judge: Judge, extensions: Sequence[Any]) -> None:
    assert judge(issue("x", ROOT, *extensions, names=["paris.example"])) == (OK, "")


def test_chain__root_without_basic_constraints_is_refused(judge: Judge) -> None:
    old = issue("Old", None, MAY_SIGN)
    result, message = judge(issue("x", old, names=["paris.example"]), trusted=old)
    assert result == TLS
    assert message.endswith("the authority “Old”: its basicConstraints must have CA:TRUE")


# What OpenSSL accepts, but browsers or Go do not.


VERSION_3 = b"\xa0\x03\x02\x01\x02"
NAMES = ["paris.example", "oslo.example"]
SERVER_FAULTS = {
    "key for encryption": (
        issue("x", ROOT, ENCIPHERS, names=NAMES, key=RSA),
        "its keyUsage must have digitalSignature",
    ),
    "key for agreement": (
        issue("x", ROOT, AGREES, names=NAMES),
        "its keyUsage must have digitalSignature",
    ),
    "old purpose": (issue("x", ROOT, GATED, names=NAMES), "it is not for servers"),
    "version 1": (
        edited(issue("x", ROOT, names=NAMES), ROOT, VERSION_3, b""),
        "it has extensions, but is not of version 3",
    ),
    "version 2": (
        edited(issue("x", ROOT, names=NAMES), ROOT, VERSION_3, b"\xa0\x03\x02\x01\x01"),
        "it has extensions, but is not of version 3",
    ),
    "negative serial number": (
        edited(issue("x", ROOT, names=NAMES, serial=1), ROOT, b"\x02\x01\x01", b"\x02\x01\xff"),
        "its serial number is negative",
    ),
    "text that is not text": (
        edited(issue("x", ROOT, names=NAMES), ROOT, b"oslo", b"os\xff\xfe"),
        "it contains text that cannot be read",
    ),
    "no subject": (
        issue("", ROOT, names=NAMES),
        "it has no subject, so its subjectAltName must be critical",
    ),
}


@pytest.mark.parametrize("name", SERVER_FAULTS)
def test_server__refused_by_browsers_or_go(judge: Judge, name: str) -> None:
    issued, why = SERVER_FAULTS[name]
    result, message = judge(issued)
    assert result == TLS
    assert "browsers or Go refuse the certificate of the server" in message
    assert message.endswith(why)


AUTHORITY_FAULTS = {
    "Koblitz curve": (
        authority("y", ROOT, key=ec.generate_private_key(ec.SECP256K1())),
        "its key must be RSA",
    ),
    "P-224": (authority("y", ROOT, key=ec.generate_private_key(ec.SECP224R1())), "its key must be RSA"),
    "Ed25519": (authority("y", ROOT, key=ed25519.Ed25519PrivateKey.generate()), "its key must be RSA"),
    "old purpose": (authority("y", ROOT, GATED), "it is not for servers"),
}


@pytest.mark.parametrize("name", AUTHORITY_FAULTS)
def test_authority__refused_by_browsers_or_go(judge: Judge, name: str) -> None:
    sub, why = AUTHORITY_FAULTS[name]
    issued = issue("x", sub, names=["paris.example"])
    for trusted in (ROOT, sub):
        result, message = judge(issued, trusted=trusted)
        assert result == TLS
        assert f"browsers or Go refuse the certificate of the authority “y”: {why}" in message


# Keys and signatures.

RSA_ROOT = authority("RSA", key=RSA)


def pss(algorithm: Any, salt: int) -> Any:
    return padding.PSS(padding.MGF1(algorithm), salt)


@pytest.mark.parametrize(
    ("issuer", "options", "accepted"),
    [
        (ROOT, {"algorithm": hashes.SHA384()}, True),
        (RSA_ROOT, {"algorithm": hashes.SHA512()}, True),
        (RSA_ROOT, {"padding": pss(hashes.SHA256(), 32)}, True),
        (RSA_ROOT, {"algorithm": hashes.SHA512(), "padding": pss(hashes.SHA512(), 64)}, True),
        (authority("P-521", key=ec.generate_private_key(ec.SECP521R1())), {}, True),
        (ROOT, {"algorithm": hashes.SHA224()}, False),
        (RSA_ROOT, {"algorithm": hashes.SHA224()}, False),
        (RSA_ROOT, {"algorithm": hashes.SHA3_256()}, False),
        (RSA_ROOT, {"padding": pss(hashes.SHA256(), 20)}, False),
    ],
)
def test_signature__of_common_algorithms(judge: Judge, issuer: Issued, options: Any, accepted: bool) -> None:
    result, message = judge(issue("x", issuer, names=["paris.example"], **options), trusted=issuer)
    assert result == (OK if accepted else TLS)
    assert accepted or "of the server “x”: it must be RSA or ECDSA with SHA-256" in message


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "RSA 2048"],
)
def test_key__accepted(judge: Judge, make: Callable[[], Any]) -> None:
    assert judge(issue("x", ROOT, names=["paris.example"], key=make())) == (OK, "")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: rsa.generate_private_key(65537, 1024), "EE certificate key too weak"),
        (
            lambda: ec.generate_private_key(ec.SECP521R1()),
            "its key must be RSA, or ECDSA with P-256 or P-384",
        ),
        (ed25519.Ed25519PrivateKey.generate, "its key must be RSA, or ECDSA with P-256 or P-384"),
        (ed448.Ed448PrivateKey.generate, "its key must be RSA, or ECDSA with P-256 or P-384"),
    ],
    ids=["RSA 1024", "P-521", "Ed25519", "Ed448"],
)
def test_key__refused(judge: Judge, make: Callable[[], Any], why: str) -> None:
    result, message = judge(issue("x", ROOT, names=["paris.example"], key=make()))
    assert result == TLS
    assert why in message


# Versions and ciphers.


def rsa_server() -> Issued:
    return issue("x", ROOT, names=["paris.example"], key=RSA)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_version__accepted(judge: Judge, version: ssl.TLSVersion) -> None:
    issued = issue("x", ROOT, names=["paris.example"])
    context = context_of(issued)
    context.minimum_version = context.maximum_version = version
    assert judge(issued, tls=context) == (OK, "")


@pytest.mark.parametrize(
    ("ciphers", "accepted"),
    [
        ("ECDHE-RSA-AES128-GCM-SHA256", True),
        ("ECDHE-RSA-CHACHA20-POLY1305", True),
        ("ECDHE-RSA-AES256-SHA384", False),
        ("ECDHE-RSA-AES128-SHA256", False),
        ("ECDHE-RSA-AES128-SHA", False),
        ("AES128-GCM-SHA256", False),
        ("AES256-SHA", False),
    ],
)
def test_cipher__of_tls_1_2(judge: Judge, ciphers: str, accepted: bool) -> None:
    issued = rsa_server()
    context = context_of(issued, ciphers)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    result, message = judge(issued, tls=context)
    assert result == (OK if accepted else TLS)
    assert accepted or "the server may lack the ciphers of browsers" in message


# The same on every Python, OpenSSL and machine.

SETTINGS = """
import ssl
from proxyhealth.probing.tls import tls_context
context = tls_context("")
assert context.check_hostname
assert context.verify_mode is ssl.CERT_REQUIRED
assert not context.hostname_checks_common_name
assert context.verify_flags == ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
assert context.minimum_version is ssl.TLSVersion.TLSv1_2
assert context.maximum_version is ssl.TLSVersion.MAXIMUM_SUPPORTED
assert context.security_level == 2
assert context.keylog_filename is None
options = ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
assert context.options & options == options
assert not context.options & (0x4 | ssl.OP_NO_TLSv1_2 | ssl.OP_NO_TLSv1_3)
assert sorted(cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] == "TLSv1.2") == [
    "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-CHACHA20-POLY1305",
]
assert context.cert_store_stats()["x509_ca"] > 50
"""

LAX = """
openssl_conf = conf
[conf]
ssl_conf = ssl
[ssl]
system_default = defaults
[defaults]
MinProtocol = TLSv1
MaxProtocol = TLSv1.2
CipherString = ALL:@SECLEVEL=0
Options = UnsafeLegacyServerConnection,UnsafeLegacyRenegotiation
"""


@pytest.mark.parametrize("lax", [False, True])
def test_settings__are_the_same_on_every_machine(lax: bool, tmp_path: Path) -> None:
    config, log = tmp_path / "openssl.cnf", tmp_path / "keys"
    config.write_text(LAX)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    if lax:
        environment |= {"OPENSSL_CONF": str(config), "SSLKEYLOGFILE": str(log), "SSL_CERT_FILE": "/dev/null"}
    subprocess.run([sys.executable, "-c", SETTINGS], env=environment, check=True)
