"""Who is on the other end of a Unix socket: the kernel knows, whoever made the socket's file."""

from __future__ import annotations

import os
import socket
import struct

_CREDENTIALS = struct.Struct("3i")


def peer_user(connection: socket.socket) -> int:
    """The user that the other process ran as when it connected, or began to listen."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def is_same_user(connection: socket.socket) -> bool:
    """Whether the other process runs as this one does."""
    return peer_user(connection) == os.geteuid()
