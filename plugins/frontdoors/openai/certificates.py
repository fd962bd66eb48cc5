"""A server's certificate and key: read, or refused with what is wrong with them."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

from shuntserve_core.errors import UserError

_CERTIFICATE, _KEY = "frontdoor.tls_certificate", "frontdoor.tls_key"
_NOT_YET, _EXPIRED = 9, 10
"""OpenSSL's codes of verification: X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED."""


def server_context(certificate: str, key: str) -> ssl.SSLContext | None:
    """What HTTPS is spoken with; None where there is neither file.  Raises `UserError`."""
    if not certificate:
        if key:
            raise UserError(
                "is missing, and there is a tls_key",
                where=_CERTIFICATE,
                remedy="give both for HTTPS, or neither for HTTP",
            )
        return None
    for where, file in ((_CERTIFICATE, certificate), (_KEY, key)):
        _refuse_unreadable(file, where)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key or None, password=_refuse_encrypted)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = f"{certificate} and {key or certificate} do not belong together"
            remedy = "give the key that the certificate was made for"
        else:
            which = (
                f"{certificate}, or its key {key}, is" if key else f"{certificate} and its key are"
            )
            reason = f"{which} not in PEM ({error.reason or error})"
            remedy = "give both in PEM, the certificate first in its file"
        raise UserError(reason, where=_CERTIFICATE, remedy=remedy) from error
    _refuse_outdated(context, certificate)
    return context


def _refuse_unreadable(file: str, where: str) -> None:
    try:
        if file:
            with Path(file).open("rb") as content:
                content.read(1)
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {(error.strerror or str(error)).lower()}",
            where=where,
            remedy="name a file that this user may read",
        ) from error


def _refuse_encrypted() -> NoReturn:
    """OpenSSL would ask on the terminal, and wait."""
    raise UserError(
        "the key is encrypted", where=_KEY, remedy="decrypt it: openssl pkey -in KEY -out NEW"
    )


def _refuse_outdated(context: ssl.SSLContext, certificate: str) -> None:
    """Shake hands with it, as a client that trusts nothing else would."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cafile=certificate)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(back, there), context.wrap_bio(there, back, server_side=True))
    for end in ends * 4:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in (_NOT_YET, _EXPIRED):
                when = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
                raise UserError(
                    f"{certificate} {when}",
                    where=_CERTIFICATE,
                    remedy="renew it, or set this machine's clock",
                ) from error
            return
        except ssl.SSLError:  # whatever else a client may not like is between it and the server
            return
