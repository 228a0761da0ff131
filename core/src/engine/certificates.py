"""Certificates for the API's TCP door: a private CA, and what it signs for servers and clients.

Keys are ECDSA P-256; a file that holds one is readable by its owner only and is never overwritten. The names are
Docker's, so ``DOCKER_CERT_PATH`` can point at a client's directory: ``ca.pem``, ``cert.pem``, ``key.pem``.
The CA's key (``ca-key.pem``) need not stay on the host it was made for.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engine.errors import AlreadyExists, InvalidParameter, NotFound

__all__ = ["Described", "describe", "make_ca", "make_client", "make_server"]

CA_DAYS = 3650
DAYS = 397
"""What browsers and Go accept at most for a server."""

_MARGIN = datetime.timedelta(minutes=5)  # for clocks that are behind


@dataclass(frozen=True, slots=True)
class Described:
    """What a certificate says; ``kind`` is ca, server or client."""

    kind: str
    name: str
    names: tuple[str, ...]
    not_after: datetime.datetime
    issuer: str


def make_ca(directory: Path, *, name: str = "engine CA", days: int = CA_DAYS) -> None:
    """Write ``ca.pem`` and ``ca-key.pem``. Raises `AlreadyExists` when there is a CA already."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _builder(subject, subject, key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    _write_key(directory / "ca-key.pem", key)
    _write(directory / "ca.pem", builder.sign(key, hashes.SHA256()))


def make_server(directory: Path, hosts: Sequence[str], *, ca: Path, days: int = DAYS) -> None:
    """Write ``cert.pem``, ``key.pem`` and a copy of ``ca.pem`` for a server reached by ``hosts`` (names, addresses)."""
    if not hosts:
        raise InvalidParameter("a server certificate needs at least one name or address clients connect to")
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    _make(directory, hosts[0], ca, days, ExtendedKeyUsageOID.SERVER_AUTH, names)


def make_client(directory: Path, name: str, *, ca: Path, days: int = DAYS) -> None:
    """Write ``cert.pem``, ``key.pem`` and a copy of ``ca.pem`` for a client; ``name`` is who it is to authorization."""
    _make(directory, name, ca, days, ExtendedKeyUsageOID.CLIENT_AUTH, None)


def describe(path: Path) -> Described:
    """Read a certificate file. Raises `NotFound` or `InvalidParameter`."""
    certificate = _load(path)
    kind = "client"
    try:
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            kind = "ca"
        elif (
            ExtendedKeyUsageOID.SERVER_AUTH
            in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        ):
            kind = "server"
    except x509.ExtensionNotFound:
        pass
    names: tuple[str, ...] = ()
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(name.value) for name in found)
    except x509.ExtensionNotFound:
        pass
    return Described(
        kind=kind,
        name=_common_name(certificate.subject),
        names=names,
        not_after=certificate.not_valid_after_utc,
        issuer=_common_name(certificate.issuer),
    )


def _make(
    directory: Path,
    name: str,
    ca: Path,
    days: int,
    usage: x509.ObjectIdentifier,
    names: x509.SubjectAlternativeName | None,
) -> None:
    authority = _load(ca / "ca.pem")
    signer = _load_key(ca / "ca-key.pem")
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_subject(name), authority.subject, key, days, authority.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    _write_key(directory / "key.pem", key)
    _write(directory / "cert.pem", builder.sign(signer, hashes.SHA256()))
    if directory.resolve() != ca.resolve():
        _write(directory / "ca.pem", authority)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    days: int,
    latest: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    if not 0 < days <= CA_DAYS:
        raise InvalidParameter(f"invalid number of days: {days} (1 to {CA_DAYS})")
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _MARGIN)
        .not_valid_after(min(end, latest) if latest else end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _subject(name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    except ValueError as error:
        raise InvalidParameter(f"invalid name {name!r}: {error}") from None


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError:
        raise InvalidParameter(f"invalid host name {host!r}") from None


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"no certificate {path}: `engine cert ca` makes a CA first") from None
    except ValueError as error:
        raise InvalidParameter(f"{path} is no certificate: {error}") from None


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise NotFound(f"no key {path}: certificates are signed where the CA's key is") from None
    except (ValueError, TypeError) as error:
        raise InvalidParameter(f"{path} is no private key: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InvalidParameter(f"{path} is not an elliptic curve key")
    return key


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise AlreadyExists(f"{path} exists already; move it away to make a new one") from None
    with open(fd, "wb") as file:
        file.write(data)


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    path.chmod(0o644)
