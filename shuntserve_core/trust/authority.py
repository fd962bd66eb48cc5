"""A cluster's own certificate authority, and the TLS contexts made from its certificates.

Every certificate names one member, in its DNS name: `control.shuntserve` or
`ID.machine.shuntserve`.  Names of hosts and addresses stand in none, so that a member may
move.
"""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

from attrs import frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shuntserve_core.errors import UserError
from shuntserve_core.files import private_dir, write_private

CONTROL = "control.shuntserve"
"""Name of the control plane, wherever it runs."""
_MACHINES = ".machine.shuntserve"
_AUTHORITY_DAYS = 3650
_MEMBER_DAYS = 365
_SKEW = dt.timedelta(hours=1)
"""Certificates are valid from before they are made: clocks of machines differ."""


@frozen
class Identity:
    """A member's certificate and key, and the authority that it trusts; PEM files."""

    certificate: Path
    key: Path
    authority: Path

    @classmethod
    def at(cls, directory: Path) -> Identity:
        """The files of a member that keeps them in this directory."""
        return cls(
            directory / "certificate.pem", directory / "key.pem", directory / "authority.pem"
        )

    @property
    def complete(self) -> bool:
        """Whether all three are there."""
        return all(file.is_file() for file in (self.certificate, self.key, self.authority))

    def server(self, *, strangers: bool = False) -> ssl.SSLContext:
        """TLS for who listens: members alone, or `strangers` without a certificate as well."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL if strangers else ssl.CERT_REQUIRED
        return self._loaded(context)

    def client(self) -> ssl.SSLContext:
        """TLS for who connects; give the other side's name as `server_hostname`."""
        return self._loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def _loaded(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(self.authority)
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            reason = f"cannot use this certificate: {error}"
            raise UserError(reason, where=str(self.certificate.parent)) from error
        return context


class Authority:
    """Signs members' certificates; its key is in a directory of this user's alone."""

    def __init__(self, directory: Path, cluster: str) -> None:
        """Read the authority's files, or make them.  Raises `UserError` where they are damaged."""
        self._directory = private_dir(directory)
        self.certificate_file = directory / "authority.pem"
        key_file = directory / "authority-key.pem"
        if not key_file.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            write_private(self.certificate_file, _own_certificate(key, cluster))
            write_private(key_file, _pem_of(key))  # the last: without it all is made again
        try:
            loaded = serialization.load_pem_private_key(key_file.read_bytes(), None)
            self._certificate = x509.load_pem_x509_certificate(self.certificate_file.read_bytes())
        except (OSError, ValueError) as error:
            remedy = "restore it, or remove the folder: every machine then needs a new ticket"
            raise UserError(f"damaged: {error}", where=str(directory), remedy=remedy) from error
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self._key = loaded

    @property
    def certificate(self) -> str:
        """The authority's own, for those who are to trust it; PEM."""
        return self.certificate_file.read_text()

    def identity(self, name: str = CONTROL) -> Identity:
        """A member's files in this directory, made anew where they are not there or soon expire."""
        directory = private_dir(self._directory / name)
        identity = Identity.at(directory)
        if not identity.complete or _expires_soon(identity.certificate):
            key, request = make_request()
            write_private(identity.key, key)
            write_private(identity.authority, self.certificate)
            write_private(identity.certificate, self.sign(request, name))
        return identity

    def sign(self, request: str, name: str) -> str:
        """A certificate for the key of a signing request (PEM), and for no name that it asks for.

        Raises `UserError` where the request is none.
        """
        try:
            asked = x509.load_pem_x509_csr(request.encode())
            valid = asked.is_signature_valid
        except ValueError as error:
            raise UserError("not a certificate signing request in PEM") from error
        if not valid:
            raise UserError("the certificate signing request is not signed by its own key")
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = _builder(name, self._certificate.subject, _MEMBER_DAYS)
        certificate = (
            builder.public_key(asked.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()


def machine_name(machine: str) -> str:
    """The name in a machine's certificate."""
    return f"{machine}{_MACHINES}"


def machine_of(certificate: object) -> str:
    """The machine that a verified certificate names, as `SSLObject.getpeercert` gives it; or ''."""
    names = certificate.get("subjectAltName", ()) if isinstance(certificate, dict) else ()
    found = [name.removesuffix(_MACHINES) for kind, name in names if name.endswith(_MACHINES)]
    return found[0] if found else ""


def make_request() -> tuple[str, str]:
    """A new key, and a signing request for it; both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a member")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = request.sign(key, hashes.SHA256())
    return _pem_of(key), signed.public_bytes(serialization.Encoding.PEM).decode()


def trusting(authority: str) -> ssl.SSLContext:
    """TLS for a stranger who knows the authority's certificate (PEM) and has none of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=authority)
    except (ssl.SSLError, ValueError) as error:
        raise UserError(f"the authority's certificate is damaged: {error}") from error
    return context


def _own_certificate(key: ec.EllipticCurvePrivateKey, cluster: str) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"shuntserve {cluster}"[:64])])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(None, name, _AUTHORITY_DAYS)
        .subject_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _builder(name: str | None, issuer: x509.Name, days: int) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
    )
    if name is None:
        return builder
    return builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))


def _expires_soon(certificate: Path) -> bool:
    try:
        expires = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except ValueError:
        return True
    return expires < dt.datetime.now(dt.UTC) + dt.timedelta(days=_MEMBER_DAYS / 4)


def _pem_of(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
