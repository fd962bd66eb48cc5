"""What keeps a front door from starting: each named, with the way out."""

from __future__ import annotations

import datetime as dt
import re
import socket
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shuntserve_core.errors import UserError
from shuntserve_plugins.frontdoors.openai.certificates import server_context
from shuntserve_plugins.frontdoors.openai.door import _remedy
from shuntserve_plugins.frontdoors.openai.keys import ApiKey

DAY = dt.timedelta(days=1)


def make(folder: Path, name: str, *, since: int = -1, until: int = 1, password: str = "") -> None:
    """A leaf that signs itself, `NAME.crt`, and its key, `NAME.key`; days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(named)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + since * DAY)
        .not_valid_after(now + until * DAY)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password.encode())
    form = serialization.PrivateFormat.PKCS8
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, form, encryption))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path, "good")
    make(tmp_path, "other")
    make(tmp_path, "old", since=-9, until=-1)
    make(tmp_path, "new", since=1, until=9)
    make(tmp_path, "locked", password="hard to guess")
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "both").write_bytes(
        (tmp_path / "good.crt").read_bytes() + (tmp_path / "good.key").read_bytes()
    )
    return tmp_path


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        (
            "none",
            "good.key",
            r"tls_certificate: cannot read .*none: no such file.*; name a file th",
        ),
        (".", "good.key", r"tls_certificate: cannot read .*: is a directory; name a file"),
        ("good.crt", "none", r"tls_key: cannot read .*none: no such file.*; name a file that"),
        ("good.crt", "other.key", r"good.crt and .*other.key do not belong together; give the key"),
        ("junk", "good.key", r"junk, or its key .*, is not in PEM .*; give both in PEM"),
        ("good.crt", "junk", r"good.crt, or its key .*junk, is not in PEM .*; give both in PEM"),
        ("good.crt", "", r"good.crt and its key are not in PEM .*; give both in PEM"),
        ("old.crt", "old.key", r"old.crt has expired; renew it, or set this machine's clock"),
        ("new.crt", "new.key", r"new.crt is not valid yet; renew it, or set this machine's clock"),
        (
            "locked.crt",
            "locked.key",
            r"tls_key: the key is encrypted; decrypt it: openssl pkey -in",
        ),
        (
            "",
            "good.key",
            r"tls_certificate: is missing, and there is a tls_key; give both for HTTP",
        ),
    ],
)
def test_certificates(folder: Path, certificate: str, key: str, said: str) -> None:
    files = [str(folder / name) if name else "" for name in (certificate, key)]
    with pytest.raises(UserError, match=said) as caught:
        server_context(*files)
    assert "\n" not in str(caught.value)


def test_certificates_that_serve(folder: Path) -> None:
    assert server_context("", "") is None
    assert server_context(str(folder / "good.crt"), str(folder / "good.key")) is not None
    assert server_context(str(folder / "both"), "") is not None


def test_key_files(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, said in (
        ("none", "No such file or directory"),
        (".", "Is a directory"),
        ("binary", "not UTF-8"),
    ):
        key = ApiKey("me", file=str(tmp_path / name))
        remedy = "name a file that holds the key and this user may read"
        file = re.escape(str(tmp_path / name))
        with pytest.raises(UserError, match=rf"\(me\): cannot read {file}: {said}; {remedy}$"):
            key.digest()


@pytest.mark.parametrize(
    ("host", "remedy"),
    [
        ("192.0.2.7", "set host to an address of this machine, or to 0.0.0.0 for all"),
        ("no-such-host.invalid", "set host to an address of this machine, or to 0.0.0.0 for all"),
        ("127.0.0.1", "choose another port (0 takes a free one)"),
    ],
)
def test_addresses(host: str, remedy: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as wanted:
        with pytest.raises(OSError, match=r".") as caught:
            wanted.bind((host, taken.getsockname()[1]))
        assert _remedy(caught.value) == remedy
