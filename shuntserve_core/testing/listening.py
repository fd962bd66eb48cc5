"""What processes listen on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil


def listening(processes: Iterable[psutil.Process]) -> tuple[set[str], set[Path]]:
    """Addresses of their TCP listeners, and their Unix sockets that have a name."""
    doors, unix = set(), set()
    for process in processes:
        for one in process.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN:
                doors.add(one.laddr.ip)
        for one in process.net_connections("unix"):
            if one.laddr:
                unix.add(Path(one.laddr))
    return doors, unix
