"""Messages over a Unix socket: length, msgpack, and file descriptors beside them."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

_HEADER = struct.Struct("<II")
_FDS_A_MESSAGE = 250
"""Linux passes at most 253 descriptors at once."""


class Disconnected(Exception):
    """The other side has gone."""


def send(sock: socket.socket, message: Any, fds: Sequence[int] = ()) -> None:
    """Send one message and duplicates of `fds`.  Raises `Disconnected`."""
    import msgpack  # who only plans has none

    body = msgpack.packb(message)
    try:
        sock.sendall(_HEADER.pack(len(body), len(fds)) + body)
        for start in range(0, len(fds), _FDS_A_MESSAGE):
            socket.send_fds(sock, [b"f"], list(fds[start : start + _FDS_A_MESSAGE]))
    except OSError as error:
        raise Disconnected(str(error)) from error


def receive(sock: socket.socket) -> tuple[Any, list[int]]:
    """The next message and the descriptors that came with it, which the caller must close.

    Raises `Disconnected`.
    """
    fds: list[int] = []
    try:
        length, count = _HEADER.unpack(_exactly(sock, _HEADER.size))
        body = _exactly(sock, length)
        while len(fds) < count:
            marker, more, flags, _ = socket.recv_fds(sock, 1, _FDS_A_MESSAGE)
            fds.extend(more)
            if not marker:
                raise Disconnected("the connection ended between file descriptors")
            if flags & socket.MSG_CTRUNC:
                raise Disconnected("this process may open no more files (ulimit -n)")
    except (OSError, Disconnected) as error:
        for fd in fds:
            os.close(fd)
        raise Disconnected(str(error)) from error
    import msgpack

    return msgpack.unpackb(body), fds


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        got = sock.recv_into(view)
        if not got:
            raise Disconnected("the connection was closed")
        view = view[got:]
    return bytes(data)
