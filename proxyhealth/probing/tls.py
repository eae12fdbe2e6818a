"""The judgement of TLS, the same with every Python and OpenSSL.

A proxy is good only if all its users can connect: browsers, Go, and Python with urllib3. This module decides
what their defaults and the system's ``openssl.cnf`` would decide otherwise.
"""

import ssl
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import certifi

from proxyhealth.probing.certificates import Certificate, fault_of, read_chain
from proxyhealth.probing.sockets import TLSSocket
from proxyhealth.report import clean
from proxyhealth.utils import PerProcess

# Elliptic curves and authenticated encryption: browsers and Go have given up the other ciphers of TLS 1.2.
# Security level 2 refuses RSA keys below 2,048 bits and signatures with SHA-1.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:@SECLEVEL=2"

# An authority in CA_BUNDLE is trusted, also an intermediate one. Not VERIFY_X509_STRICT, a default of
# Python 3.13: many private authorities fail it, although browsers and Go accept them.
VERIFY_FLAGS = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN

_LEGACY_SERVER_CONNECT = 0x4  # ssl.OP_LEGACY_SERVER_CONNECT, since Python 3.12

# Values of ssl.SSLCertVerificationError.verify_code.
_NOT_YET_VALID = 9
_EXPIRED = 10
_NAME_MISMATCHES = (62, 64)

# All threads of a round need the context at once, but only one of them must build it.
_build_lock = PerProcess(threading.Lock)


def tls_context(ca_bundle: str) -> ssl.SSLContext:
    """Return the context of all probes. It trusts public authorities, and those in the file ``ca_bundle``.

    ``ca_bundle`` may be empty. Building a context takes 20 ms, so probes share it until the file changes.
    """
    mtime = Path(ca_bundle).stat().st_mtime_ns if ca_bundle else 0
    with _build_lock.value:
        return _tls_context(ca_bundle, mtime)


@lru_cache(maxsize=2)
def _tls_context(ca_bundle: str, mtime: int) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the chain, its purpose, and the name
    context.hostname_checks_common_name = False  # only the subjectAltName counts
    context.verify_flags = VERIFY_FLAGS
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.options &= ~_LEGACY_SERVER_CONNECT
    context.set_alpn_protocols(["http/1.1"])
    context.load_verify_locations(cafile=certifi.where())
    if ca_bundle:
        context.load_verify_locations(cafile=ca_bundle)
    return context


def shake_hands(sock: TLSSocket) -> Certificate | None:
    """Return the certificate of the verified chain that expires first. Raise ``OSError``."""
    try:
        sock.do_handshake()
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message.removesuffix(".")
        error.verify_message = why + _explain(error.verify_code, _chain_of(sock))
        raise
    chain = _chain_of(sock)
    if fault := fault_of(chain):
        refusal = ssl.SSLCertVerificationError(1, fault)
        refusal.verify_message = fault
        raise refusal
    dated = [certificate for certificate in chain if certificate.expires_at]
    return min(dated, key=attrgetter("expires_at"), default=None)


# Hints by parts of OpenSSL's reasons. The first match counts.
_NO_CIPHER = "the server may lack the ciphers of browsers, or demand a client certificate"
_NO_VERSION = "the server may lack TLS 1.2 and 1.3"
_NO_CLIENT = "the server may demand a client certificate"
_NO_NAME = "the server may have no certificate for this host name"
_HINTS = {
    "NO_APPLICATION_PROTOCOL": "the server refuses HTTP/1.1 and probably speaks only HTTP/2",
    "HANDSHAKE_FAILURE": _NO_CIPHER,
    "INSUFFICIENT_SECURITY": _NO_CIPHER,
    "PROTOCOL_VERSION": _NO_VERSION,
    "UNSUPPORTED_PROTOCOL": _NO_VERSION,
    "CERTIFICATE": _NO_CLIENT,
    "UNKNOWN_CA": _NO_CLIENT,
    "ACCESS_DENIED": _NO_CLIENT,
    "UNRECOGNIZED_NAME": _NO_NAME,
    "INTERNAL_ERROR": _NO_NAME,
    "EOF": f"{_NO_NAME}, or speak no TLS: should the URL begin with http://?",
}
HANDSHAKE = "in the TLS handshake"


def describe(error: ssl.SSLError, phase: str) -> str:
    """Describe a failed handshake for operators: the fault, and the step of the probe."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted while {phase}: {error.verify_message}"
    reason = getattr(error, "reason", "") or str(error)  # an error of our own has none
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return f"the server speaks no TLS (while {phase}); should the URL begin with http://?"
    name = reason.upper().replace(" ", "_")
    if "EOF" in name and HANDSHAKE not in phase:
        name = "CERTIFICATE"  # TLS 1.3 demands it after the handshake, and closing may overtake the alert
    hint = next((f"; {hint}" for part, hint in _HINTS.items() if part in name), "")
    return f"TLS failed while {phase}: {reason}{hint}"


def _chain_of(sock: TLSSocket) -> list[Certificate]:
    """Return the chain from the server to the trusted authority, also after a failed verification."""
    # Public since Python 3.13, but only as DER, which no public function can read.
    return read_chain(cast(Any, sock.tls)._sslobj.get_verified_chain() or ())


def _explain(verify_code: int, chain: Sequence[Certificate]) -> str:
    """Return the end of OpenSSL's message: the certificate of ``chain`` that is at fault."""
    now = datetime.now(UTC)
    ended = ""
    if verify_code in _NAME_MISMATCHES and chain:
        names = ", ".join(chain[0].server_names[:5])
        if names:
            return f"; it is for {clean(names, 200)}"
        return "; it has no host in its subjectAltName, and the common name does not count"
    for certificate in chain:
        if verify_code == _EXPIRED and certificate.expires_at and certificate.expires_at < now:
            ended += f"; that of {certificate.owner} expired on {certificate.expires_at:%Y-%m-%d %H:%M} UTC"
        if verify_code == _NOT_YET_VALID and certificate.starts_at and certificate.starts_at > now:
            ended += f"; that of {certificate.owner} starts on {certificate.starts_at:%Y-%m-%d %H:%M} UTC"
    return ended
