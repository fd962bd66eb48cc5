"""Where a link listens: `host:port`, `[v6 address]:port` or `unix:/path`."""

from __future__ import annotations

from attrs import frozen

from shuntserve_core.errors import UserError


@frozen
class Address:
    """Either a host and a port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """As `parse_address` reads it."""
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read an address.  Raises `UserError`."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(path=text.removeprefix("unix:"))
    host, colon, port = text.rpartition(":")
    if colon and host and port.isdecimal() and int(port) < 2**16:
        return Address(host.removeprefix("[").removesuffix("]"), int(port))
    raise UserError(
        f"{text!r} is no address of a link", remedy="expected host:port or unix:/path/of/socket"
    )
