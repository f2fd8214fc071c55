"""Certificates for one cluster: a private authority, and one certificate each for its scheduler, its workers and its clients.

Dask checks that a certificate is of the cluster's authority, and no host names (`distributed.security.Security`). What a
certificate may be used for is in it (RFC 5280, extended key usage): a client's cannot stand in for a scheduler or a worker.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from profiler.errors import StudyError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUTHORITY = "ca"
ROLES: Mapping[str, tuple[bool, bool]] = {
    # Whether it is spoken to, and whether it speaks first. Workers speak with each other.
    "scheduler": (True, True),
    "worker": (True, True),
    "client": (False, True),
}
DAYS, MAX_DAYS = 365, 3650
_BEFORE = timedelta(minutes=5)
"""Clocks of machines differ a little."""


def make_keys(folder: Path, *, now: datetime, days: int = DAYS) -> list[Path]:
    """Write `ca.pem`, `ca.key` and for each role `ROLE.pem` and `ROLE.key` (mode 0600) into `folder`; returns all of them.

    `now` has a time zone; the certificates end after `days`. Raises StudyError when one of the files is there already: a
    second authority would lock out what runs with the first.
    """
    if importlib.util.find_spec("cryptography") is None:
        raise StudyError("making certificates needs the package cryptography: pip install 'edgeprof[fleet]'.")
    if not 1 <= days <= MAX_DAYS:
        raise StudyError(f"certificates are made for 1 to {MAX_DAYS} days, got {days}.")
    names = [f"{name}.{kind}" for name in (AUTHORITY, *ROLES) for kind in ("pem", "key")]
    there = [name for name in names if (folder / name).exists()]
    if there:
        raise StudyError(
            f"'{folder}' has {', '.join(there)} already: choose another folder, or delete them if no cluster uses them."
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    until = now + timedelta(days=days)
    authority_key, authority = _authority(now - _BEFORE, until)
    _write(folder, AUTHORITY, authority_key, authority)
    for role, (serves, calls) in ROLES.items():
        key, certificate = _certificate(role, serves, calls, authority_key, authority, now - _BEFORE, until)
        _write(folder, role, key, certificate)
    return [folder / name for name in names]


def _authority(begin: datetime, end: datetime) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("edgeprof cluster authority")
    builder = (
        _begun(name, name, key, begin, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return key, builder.sign(key, hashes.SHA256())


def _certificate(
    role: str, serves: bool, calls: bool, authority_key: EllipticCurvePrivateKey, authority: x509.Certificate,
    begin: datetime, end: datetime,
) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:  # fmt: skip
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key = ec.generate_private_key(ec.SECP256R1())
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH] * serves + [ExtendedKeyUsageOID.CLIENT_AUTH] * calls
    builder = (
        _begun(_name(f"edgeprof cluster {role}"), authority.subject, key, begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    return key, builder.sign(authority_key, hashes.SHA256())


def _begun(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _write(folder: Path, name: str, key: EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    from cryptography.hazmat.primitives import serialization

    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _new_file(folder / f"{name}.key", secret, 0o600)
    _new_file(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _new_file(path: Path, data: bytes, mode: int) -> None:
    """Never open to others, not even for a moment, and never over what is there."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
