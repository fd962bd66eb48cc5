"""Connections between the ranks of an engine, and proof that the other side belongs to it.

What ranks say to each other is msgpack: data, and nothing that runs.  The side that is connected to
is in `arrivals`.
"""

from __future__ import annotations

import hmac
import os
import socket
import struct
import time
from typing import Any

import msgpack

LENGTH = struct.Struct("<I")
"""Of a message, before it."""
PROOF_BYTES = 256
"""The longest message of a handshake."""
CONNECTS, ACCEPTS = b"connects", b"accepts"
"""Who proves it."""
REFUSED = b""
"""In place of a proof."""
NONCE_BYTES = 16
_LONGEST = 64 << 20
_CONNECT_SECONDS = 120.0
_RETRY_SECONDS = 0.02
_BUFFER_BYTES = 128 << 10

Place = tuple[int, str]
"""A rank, and what it connects for: a proof of one is worth nothing for another."""


class PeerLost(Exception):
    """The other side has gone, or is not what it should be."""


class Closed(PeerLost):
    """The connection has ended."""


def connect(address: str, token: str, rank: int, purpose: str) -> socket.socket:
    """Connect to a `PeerListener` as `rank`, once it is there.

    Both sides prove that they know the token, each over a number that the other has drawn.  A
    connection that ends meanwhile is tried again: strangers may have been too many for a moment.
    Raises `PeerLost`, also where the other side proves nothing.
    """
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        sock = _connect(address, deadline)
        try:
            _prove(sock, address, token.encode(), (rank, purpose), deadline)
        except Closed:
            sock.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
        except PeerLost:
            sock.close()
            raise
        else:
            tune(sock)
            return sock


def _prove(sock: socket.socket, address: str, key: bytes, place: Place, deadline: float) -> None:
    """The connecting side of a handshake."""
    own = os.urandom(NONCE_BYTES)
    nonce = receive(sock, longest=PROOF_BYTES, deadline=deadline)
    if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
        raise PeerLost(f"what listens at {address} is no rank")
    send(sock, (*place, own, proof_of(key, CONNECTS, nonce, own, place)))
    proof = receive(sock, longest=PROOF_BYTES, deadline=deadline)
    if proof == REFUSED:
        raise PeerLost(f"what listens at {address} refuses this rank ({place[0]}, {place[1]})")
    expected = proof_of(key, ACCEPTS, nonce, own, place)
    if not isinstance(proof, bytes) or not hmac.compare_digest(proof, expected):
        raise PeerLost(f"what listens at {address} does not know the token")


def proof_of(key: bytes, side: bytes, nonce: bytes, other: bytes, place: Place) -> bytes:
    """Of one side: the other cannot send back what it was sent.  The numbers have 16 bytes."""
    rank, purpose = place
    return hmac.digest(key, side + nonce + other + f"{rank} {purpose}".encode(), "sha256")


def packed(message: Any) -> bytes:
    """A message as it is sent."""
    return framed(msgpack.packb(message))


def framed(body: bytes) -> bytes:
    """Bytes as a message."""
    return LENGTH.pack(len(body)) + body


def send(sock: socket.socket, message: Any) -> None:
    """Send a message.  Raises `PeerLost`."""
    send_bytes(sock, packed(message))


def send_bytes(sock: socket.socket, data: bytes | memoryview) -> None:
    """Send bytes whose number the other side knows.  Raises `PeerLost`."""
    try:
        sock.sendall(data)
    except OSError as error:
        raise _lost(error) from error


def receive(sock: socket.socket, *, longest: int = _LONGEST, deadline: float | None = None) -> Any:
    """The next message; keys of maps may be numbers, as in `logit_bias`.

    Raises `PeerLost`, as `receive_body` does.
    """
    try:
        body = receive_body(sock, longest=longest, deadline=deadline)
        return msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, TypeError) as error:
        raise PeerLost(f"it sent no message: {error}") from error


def receive_body(
    sock: socket.socket, *, longest: int = _LONGEST, deadline: float | None = None
) -> bytearray:
    """The bytes of the next message.

    Raises `PeerLost`, also for one that is longer than `longest` bytes, and where it has not come
    whole by `deadline`, on the monotonic clock.
    """
    length_bytes = bytearray(LENGTH.size)
    receive_into(sock, memoryview(length_bytes), deadline)
    (length,) = LENGTH.unpack(length_bytes)
    if length > longest:
        raise PeerLost(f"it announced {length} bytes")
    body = bytearray(length)
    receive_into(sock, memoryview(body), deadline)
    return body


def receive_into(sock: socket.socket, room: memoryview, deadline: float | None = None) -> None:
    """Fill `room` with what comes.  Raises `PeerLost`."""
    try:
        while room:
            if deadline is not None:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
            count = sock.recv_into(room, 0, socket.MSG_WAITALL)
            if not count:
                raise Closed("the connection was closed")
            room = room[count:]
    except OSError as error:
        raise _lost(error) from error


def _lost(error: OSError) -> PeerLost:
    return (Closed if isinstance(error, ConnectionError) else PeerLost)(str(error))


def _connect(address: str, deadline: float) -> socket.socket:
    host, _, port = address.rpartition(":")
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS)
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerLost(f"{address} does not answer: {error}") from error
            time.sleep(_RETRY_SECONDS)


def tune(sock: socket.socket) -> None:
    """No delay for small messages, and a silent host counts as dead after some seconds."""
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
        sock.setsockopt(socket.IPPROTO_TCP, option, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
