"""Certificates: their names in messages, and the faults that OpenSSL accepts, but browsers or Go refuse."""

import _ssl
import re
import ssl
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from proxyhealth.report import clean

# Parts of a certificate as DER, which has one form for each value.
_RSA, _P256, _P384, _P521 = map(
    bytes.fromhex, ("06092a864886f70d010101", "06082a8648ce3d030107", "06052b81040022", "06052b81040023")
)
_SHA_2 = [f"06096086480165030402{number}0500" for number in ("01", "02", "03")]
_SIGNATURES = (
    *(bytes.fromhex("06092a864886f70d0101" + number) for number in ("0b", "0c", "0d")),  # RSA
    *(bytes.fromhex("06082a8648ce3d0403" + number) for number in ("02", "03", "04")),  # ECDSA
    *(  # RSA-PSS: the salt is as long as the hash
        bytes.fromhex(f"a00f300d{sha}a11c301a06092a864886f70d010108300d{sha}a2030201{length}")
        for sha, length in zip(_SHA_2, ("20", "30", "40"), strict=True)
    ),
)
_EXTENSION = bytes.fromhex("0603551d")
_PURPOSES = bytes.fromhex("0603551d25")
_SERVERS = bytes.fromhex("06082b06010505070301")
_NAMES_ARE_CRITICAL = bytes.fromhex("0603551d110101ff")
_IS_CA = re.compile(rb"\x06\x03\x55\x1d\x13(?:\x01\x01\xff)?\x04.\x30.\x01\x01\xff", re.DOTALL)
_SIGNS_NO_HANDSHAKE = re.compile(rb"\x06\x03\x55\x1d\x0f(?:\x01\x01\xff)?\x04.\x03..[\0-\x7f]", re.DOTALL)


class Certificate(NamedTuple):
    """A certificate of a chain. Messages show ``owner``, and ``fault``, the reason of a refusal."""

    owner: str
    starts_at: datetime | None
    expires_at: datetime | None
    server_names: tuple[str, ...]
    is_authority: bool
    fault: str
    has_common_signature: bool


def read_chain(certificates: Sequence[Any]) -> list[Certificate]:
    """Return the certificates of a verified chain, that of the server first."""
    return [
        _read_authority(certificate) if place else _read(certificate, is_authority=False)
        for place, certificate in enumerate(certificates)
    ]


def fault_of(chain: Sequence[Certificate]) -> str:
    """Return the reason why browsers or Go refuse a chain that OpenSSL accepts, or an empty string."""
    for certificate in chain:
        if certificate.fault:
            return f"browsers or Go refuse the certificate of {certificate.owner}: {certificate.fault}"
    for certificate in chain[:-1]:  # the last one is trusted for itself
        if not certificate.has_common_signature:
            return (
                f"browsers refuse the signature of the certificate of {certificate.owner}: it must be RSA or "
                "ECDSA with SHA-256, SHA-384 or SHA-512"
            )
    return ""


@lru_cache(maxsize=256)  # many servers have the same authorities; certificates can be compared
def _read_authority(certificate: Any) -> Certificate:
    return _read(certificate, is_authority=True)


def _read(certificate: Any, *, is_authority: bool) -> Certificate:
    role = "the authority" if is_authority else "the server"
    info: dict[str, Any] = {}
    with suppress(ValueError):  # a certificate may contain bytes that are not text
        info = certificate.get_info()
    subject = {key: value for part in info.get("subject", ()) for key, value in part}
    name = subject.get("commonName") or next(reversed(subject.values()), "")
    der = certificate.public_bytes(_ssl.ENCODING_DER)
    names = info.get("subjectAltName", ())
    return Certificate(
        owner=f"{role} “{clean(name, 64)}”" if name else role,
        starts_at=_moment(info.get("notBefore", "")),
        expires_at=_moment(info.get("notAfter", "")),
        server_names=tuple(str(value) for kind, value in names if kind in ("DNS", "IP Address")),
        is_authority=is_authority,
        fault=_fault(der, info, is_authority),
        has_common_signature=any(signature in der for signature in _SIGNATURES),
    )


def _fault(der: bytes, info: dict[str, Any], is_authority: bool) -> str:
    """Return the reason why browsers or Go refuse a certificate at any place, or an empty string."""
    if not info:
        return "it contains text that cannot be read"
    if info["serialNumber"].startswith("-"):
        return "its serial number is negative"
    if info["version"] != 3 and _EXTENSION in der:
        return "it has extensions, but is not of version 3"
    if _PURPOSES in der and _SERVERS not in der:
        return "it is not for servers"
    return _fault_of_authority(der, info) if is_authority else _fault_of_server(der, info)


def _fault_of_authority(der: bytes, info: dict[str, Any]) -> str:
    if not any(key in der for key in (_RSA, _P256, _P384, _P521)):
        return "its key must be RSA, or ECDSA with P-256, P-384 or P-521"
    if info["version"] == 3 and not _IS_CA.search(der):
        return "its basicConstraints must have CA:TRUE"
    return ""


def _fault_of_server(der: bytes, info: dict[str, Any]) -> str:
    if not any(key in der for key in (_RSA, _P256, _P384)):
        return "its key must be RSA, or ECDSA with P-256 or P-384"
    if _SIGNS_NO_HANDSHAKE.search(der):
        return "its keyUsage must have digitalSignature"
    if not info["subject"] and _NAMES_ARE_CRITICAL not in der:
        return "it has no subject, so its subjectAltName must be critical"
    return ""


def _moment(text: str) -> datetime | None:
    with suppress(ValueError, OverflowError):
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(text), UTC)
    return None
