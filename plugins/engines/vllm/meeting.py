"""Where the ranks of an engine meet before they know each other."""

from __future__ import annotations

import socket

from torch.distributed import TCPStore  # type: ignore[attr-defined]

__all__ = ["TCPStore", "meet"]


def meet(host: str, port: int) -> TCPStore:
    """Open the meeting point on a free port (0), or go to it.

    Left to itself it would listen on every address of the machine; it is given a socket that is
    bound to the engine's alone.
    """
    if port:
        return TCPStore(host, port, is_master=False, wait_for_workers=False)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family)
    return TCPStore(
        host,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
