"""What processes listen on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

import psutil
from attrs import frozen

TCP, UDP, UNIX = "tcp", "udp", "unix"


@frozen
class Listener:
    """A socket that others can reach."""

    process: psutil.Process
    kind: str
    """`tcp`, `udp` or `unix`."""
    where: str
    """An address, or the path of a Unix socket: one that begins with `@` is no file."""
    port: int = 0


def listeners(processes: Iterable[psutil.Process]) -> list[Listener]:
    """TCP sockets that listen, UDP sockets that hear anybody, and Unix sockets that have a name.

    What has ended meanwhile listens on nothing.
    """
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    found.append(Listener(process, TCP, one.laddr.ip, one.laddr.port))
            for one in process.net_connections("udp"):
                if one.laddr and not one.raddr:
                    found.append(Listener(process, UDP, one.laddr.ip, one.laddr.port))
            for one in process.net_connections("unix"):
                if one.laddr:
                    found.append(Listener(process, UNIX, one.laddr))
    return found


def listening(processes: Iterable[psutil.Process]) -> tuple[set[str], set[Path]]:
    """Addresses that others can reach, and paths of Unix sockets."""
    found = listeners(processes)
    doors = {one.where for one in found if one.kind != UNIX}
    return doors, {Path(one.where) for one in found if one.kind == UNIX}
