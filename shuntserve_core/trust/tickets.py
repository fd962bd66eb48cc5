"""Tickets: what a machine shows to get a certificate of the cluster.

A ticket is bound to a cluster by its authority, to an instance type, to a number of uses and to a
time.  The cluster keeps a digest of its secret, and who came with it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from pathlib import Path
from typing import Any

import cattrs
from attrs import asdict, evolve, frozen

from shuntserve_core.errors import UserError
from shuntserve_core.files import private_dir, write_private

LONGEST = 64 * 1024
"""Bytes of a ticket's file: it holds a certificate."""


@frozen
class Ticket:
    """What is handed to a machine."""

    id: str
    secret: str
    cluster: str
    instance: str
    urls: tuple[str, ...]
    """Where the control plane is to be found, in the order of trying."""
    authority: str
    """The certificate (PEM) that the control plane must be able to show."""
    expires: float
    """Seconds since the epoch."""

    def write(self, path: Path) -> None:
        """As a file that only this user can read."""
        write_private(path, self.text())

    def text(self) -> str:
        """As the file has it."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Ticket:
        """Raises `UserError` where it is no ticket, or has expired."""
        try:
            with path.open("rb") as file:
                data = file.read(LONGEST + 1)
            if len(data) > LONGEST:
                raise ValueError("too long")
            ticket = cattrs.structure(json.loads(data), cls)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"cannot read the ticket: {reason}", where=str(path)) from error
        except Exception as error:  # whatever cattrs and json make of a stranger's file
            remedy = "make one where the control plane runs: shuntserve ticket CONFIG TYPE"
            raise UserError("not a ticket", where=str(path), remedy=remedy) from error
        return ticket


@frozen
class _Record:
    """What the cluster knows of a ticket."""

    digest: str
    instance: str
    expires: float
    uses: int
    """How many machines may come with it."""
    machines: tuple[str, ...] = ()
    """Those that have."""


class TicketRefused(Exception):
    """Why a ticket is not taken, in words for a log; a stranger is told less."""


class TicketBook:
    """The tickets of a cluster, a file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = private_dir(directory)

    def make(
        self,
        *,
        cluster: str,
        instance: str,
        urls: tuple[str, ...],
        authority: str,
        seconds: float,
        uses: int = 1,
    ) -> Ticket:
        """A new ticket, valid for so many machines and for so long from now."""
        ident, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        expires = time.time() + seconds
        record = _Record(_digest(secret), instance, expires, uses)
        self._write(ident, record)
        return Ticket(ident, secret, cluster, instance, urls, authority, expires)

    def redeem(self, ident: str, secret: str, machine: str) -> str:
        """The instance type that the ticket is for; `machine` is counted.

        Raises `TicketRefused`.
        """
        path = self._path(ident)
        try:
            record = cattrs.structure(json.loads(path.read_bytes()), _Record)
        except (OSError, ValueError, cattrs.BaseValidationError):
            raise TicketRefused("it is not of this cluster") from None
        if not hmac.compare_digest(record.digest, _digest(secret)):
            raise TicketRefused("its secret is wrong")
        if time.time() > record.expires:
            raise TicketRefused("it has expired")
        if len(record.machines) >= record.uses:
            many = "once" if record.uses == 1 else f"{record.uses} times"
            raise TicketRefused(f"it has been used {many}, by {', '.join(record.machines[-3:])}")
        self._write(ident, evolve(record, machines=(*record.machines, machine)))
        return record.instance

    def revoke(self, ident: str) -> bool:
        """Take a ticket back; whether there was one."""
        path = self._path(ident)
        known = path.exists()
        path.unlink(missing_ok=True)
        return known

    def _path(self, ident: str) -> Path:
        if not (ident.isascii() and ident.isalnum() and len(ident) <= 64):
            raise TicketRefused("its id is none")
        return self._directory / f"{ident}.json"

    def _write(self, ident: str, record: _Record) -> None:
        data: dict[str, Any] = asdict(record)
        write_private(self._path(ident), json.dumps(data))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
