"""Certificates with any property, for tests of the judgement of TLS."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
MAY_SIGN = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
ENCIPHERS = x509.KeyUsage(False, False, True, False, False, False, False, False, False)
AGREES = x509.KeyUsage(False, False, False, False, True, False, False, False, True)  # two bytes
CRITICAL = x509.BasicConstraints | x509.UnrecognizedExtension
GATED = x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.16.840.1.113730.4.1")])  # of Netscape, for servers


class Issued(NamedTuple):
    """A certificate, its key, and the certificates that a server sends: itself and the intermediate ones."""

    certificate: x509.Certificate
    key: Any
    chain: tuple[Any, ...]

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def write(self, path: Path) -> Path:
        path.write_bytes(self.pem)
        return path


def issue(
    common_name: str,
    issuer: Issued | None = None,
    *extensions: x509.ExtensionType,
    names: Sequence[str] = (),
    key: Any = None,
    starts_at: datetime.datetime | None = None,
    expires_at: datetime.datetime | None = None,
    serial: int = 0,
    algorithm: Any = None,
    padding: Any = None,
) -> Issued:
    """Return a certificate for ``names``, signed by ``issuer`` or by itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    signer = issuer.key if issuer else key
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
    builder = x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer.certificate.subject if issuer else subject,
        public_key=key.public_key(),
        serial_number=serial or x509.random_serial_number(),
        not_valid_before=starts_at or datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC),
        not_valid_after=expires_at or datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC),
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, CRITICAL))
    if not type(signer).__name__.startswith("Ed"):
        algorithm = algorithm or hashes.SHA256()
    certificate = builder.sign(signer, algorithm, rsa_padding=padding)
    above = issuer.chain if issuer and issuer.certificate.issuer != issuer.certificate.subject else ()
    return Issued(certificate, key, (certificate, *above))


def authority(common_name: str, issuer: Issued | None = None, *extensions: Any, **options: Any) -> Issued:
    """Return the certificate of an authority."""
    limit = x509.BasicConstraints(ca=True, path_length=options.pop("path_length", None))
    return issue(common_name, issuer, limit, *extensions, **options)


class _Edited(NamedTuple):
    der: bytes

    def public_bytes(self, _encoding: object) -> bytes:
        return ssl.DER_cert_to_PEM_cert(self.der).encode()


def edited(issued: Issued, issuer: Issued, old: bytes, new: bytes) -> Issued:
    """Return ``issued`` with other bytes, signed again with ECDSA: one that no library would create."""
    body = issued.certificate.tbs_certificate_bytes
    content = body[2 + (body[1] & 0x7F) :]  # all are longer than 127 bytes
    assert old in content
    body = _sequence(content.replace(old, new, 1))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    signature = b"\0" + issuer.key.sign(body, ec.ECDSA(hashes.SHA256()))
    der = _sequence(body + algorithm + bytes([3, len(signature)]) + signature)
    return issued._replace(chain=(_Edited(der), *issued.chain[1:]))


def _sequence(content: bytes) -> bytes:
    length = len(content).to_bytes(1 if len(content) < 256 else 2, "big")
    return bytes([0x30, 0x80 + len(length)]) + length + content


def _name(name: str) -> x509.GeneralName:
    if "@" in name:
        return x509.RFC822Name(name)
    try:
        return x509.IPAddress(ipaddress.ip_address(name.removeprefix("IP:")))
    except ValueError:
        return x509.DNSName(name.removeprefix("DNS:"))


def context_of(issued: Issued, ciphers: str = "DEFAULT:@SECLEVEL=0") -> ssl.SSLContext:
    """Return the context of a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(ciphers)
    key = issued.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with tempfile.NamedTemporaryFile() as file:
        file.write(key)
        for certificate in issued.chain:
            file.write(certificate.public_bytes(serialization.Encoding.PEM))
        file.flush()
        context.load_cert_chain(file.name)
    return context
