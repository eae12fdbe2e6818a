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


class Issued(NamedTuple):
    """A certificate, its key, and the certificates that a server sends: itself and the intermediate ones."""

    certificate: x509.Certificate
    key: Any
    chain: tuple[x509.Certificate, ...]

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
) -> Issued:
    """Return a certificate for ``names``, signed by ``issuer`` or by itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    signer = issuer.key if issuer else key
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer.certificate.subject if issuer else subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=starts_at or datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC),
        not_valid_after=expires_at or datetime.datetime(2999, 1, 1, tzinfo=datetime.UTC),
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    algorithm = None if type(signer).__name__.startswith("Ed") else hashes.SHA256()
    certificate = builder.sign(signer, algorithm)
    above = issuer.chain if issuer and issuer.certificate.issuer != issuer.certificate.subject else ()
    return Issued(certificate, key, (certificate, *above))


def authority(common_name: str, issuer: Issued | None = None, *extensions: Any, **options: Any) -> Issued:
    """Return the certificate of an authority."""
    limit = x509.BasicConstraints(ca=True, path_length=options.pop("path_length", None))
    return issue(common_name, issuer, limit, *extensions, **options)


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
