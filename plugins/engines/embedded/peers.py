"""Connections between the ranks of an engine, and proof that the other side belongs to it."""

from __future__ import annotations

import hmac
import os
import socket
import struct
import time
from collections.abc import Collection
from typing import Any

import msgpack

_LENGTH = struct.Struct("<I")
_NONCE_BYTES = 16
_LONGEST = 64 << 20
_CONNECT_SECONDS = 120.0
_PROOF_SECONDS = 5.0
"""For the whole of it: strangers that send a byte now and then hold nobody up for longer."""
_PROOF_BYTES = 256
_CONNECTS, _ACCEPTS = b"connects", b"accepts"
"""Who proves it."""
_RETRY_SECONDS = 0.02
_BUFFER_BYTES = 128 << 10


class PeerLost(Exception):
    """The other side has gone, or is not what it should be."""


class PeerListener:
    """Where other ranks connect to.  Port 0 takes a free one; `address` says which."""

    def __init__(self, address: str, token: str, backlog: int) -> None:
        host, _, port = address.rpartition(":")
        self._token = token.encode()
        self._listener = socket.create_server((host, int(port)), backlog=backlog)
        self.address = f"{host}:{self._listener.getsockname()[1]}"

    def accept(self, ranks: Collection[int]) -> dict[int, socket.socket]:
        """Wait for these ranks, once each, and close.  Strangers are turned away."""
        inside: dict[int, socket.socket] = {}
        self._listener.settimeout(_CONNECT_SECONDS)
        while len(inside) < len(ranks):
            sock, _ = self._listener.accept()
            sock.settimeout(_PROOF_SECONDS)
            try:
                rank = self._verify(sock)
                if rank not in ranks or rank in inside:
                    raise PeerLost(f"there is no rank {rank}, or it is here already")
            except (PeerLost, OSError, TypeError, ValueError):
                sock.close()  # the rank itself will come yet
                continue
            _tune(sock)
            inside[rank] = sock
        self._listener.close()
        return inside

    def _verify(self, sock: socket.socket) -> int:
        nonce = os.urandom(_NONCE_BYTES)
        send(sock, nonce)
        deadline = time.monotonic() + _PROOF_SECONDS
        rank, other, proof = receive(sock, longest=_PROOF_BYTES, deadline=deadline)
        if not hmac.compare_digest(proof, _proof(self._token, _CONNECTS, nonce, other, rank)):
            raise PeerLost("it does not know the token")
        send(sock, _proof(self._token, _ACCEPTS, nonce, other, rank))
        return int(rank)


def connect(address: str, token: str, rank: int) -> socket.socket:
    """Connect to a `PeerListener` as `rank`, once it is there.

    Both sides prove that they know the token, each over a number that the other has drawn.
    Raises `PeerLost`, also where the other side proves nothing.
    """
    host, _, port = address.rpartition(":")
    sock = _connect(host, int(port))
    key, own = token.encode(), os.urandom(_NONCE_BYTES)
    deadline = time.monotonic() + _CONNECT_SECONDS
    try:
        nonce = receive(sock, longest=_PROOF_BYTES, deadline=deadline)
        if not isinstance(nonce, bytes) or len(nonce) != _NONCE_BYTES:
            raise PeerLost(f"what listens at {address} is no rank")
        send(sock, (rank, own, _proof(key, _CONNECTS, nonce, own, rank)))
        proof = receive(sock, longest=_PROOF_BYTES, deadline=deadline)
        expected = _proof(key, _ACCEPTS, nonce, own, rank)
        if not isinstance(proof, bytes) or not hmac.compare_digest(proof, expected):
            raise PeerLost(f"what listens at {address} does not know the token")
    except PeerLost:
        sock.close()
        raise
    _tune(sock)
    return sock


def packed(message: Any) -> bytes:
    """A message as it is sent."""
    body: bytes = msgpack.packb(message)
    return _LENGTH.pack(len(body)) + body


def send(sock: socket.socket, message: Any) -> None:
    """Send a message.  Raises `PeerLost`."""
    send_bytes(sock, packed(message))


def send_bytes(sock: socket.socket, data: bytes | memoryview) -> None:
    """Send bytes whose number the other side knows.  Raises `PeerLost`."""
    try:
        sock.sendall(data)
    except OSError as error:
        raise PeerLost(str(error)) from error


def receive(sock: socket.socket, *, longest: int = _LONGEST, deadline: float | None = None) -> Any:
    """The next message; keys of maps may be numbers, as in `logit_bias`.

    Raises `PeerLost`, also for one that is longer than `longest` bytes, and where it has not come
    whole by `deadline`, on the monotonic clock.
    """
    try:
        length_bytes = bytearray(_LENGTH.size)
        receive_into(sock, memoryview(length_bytes), deadline)
        (length,) = _LENGTH.unpack(length_bytes)
        if length > longest:
            raise PeerLost(f"it announced {length} bytes")
        body = bytearray(length)
        receive_into(sock, memoryview(body), deadline)
        return msgpack.unpackb(body, strict_map_key=False)
    except ValueError as error:
        raise PeerLost(str(error)) from error


def receive_into(sock: socket.socket, room: memoryview, deadline: float | None = None) -> None:
    """Fill `room` with what comes.  Raises `PeerLost`."""
    try:
        while room:
            if deadline is not None:
                sock.settimeout(max(0.001, deadline - time.monotonic()))
            count = sock.recv_into(room, 0, socket.MSG_WAITALL)
            if not count:
                raise PeerLost("the connection was closed")
            room = room[count:]
    except OSError as error:
        raise PeerLost(str(error)) from error


def _connect(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            sock = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerLost(f"{host}:{port} does not answer: {error}") from error
            time.sleep(_RETRY_SECONDS)
        else:
            sock.settimeout(None)
            return sock


def _tune(sock: socket.socket) -> None:
    """No delay for small messages, and a silent host counts as dead after some seconds."""
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
        sock.setsockopt(socket.IPPROTO_TCP, option, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _proof(token: bytes, side: bytes, nonce: bytes, other: bytes, rank: int) -> bytes:
    """Of one side: the other cannot send back what it was sent."""
    if len(other) != _NONCE_BYTES:
        raise PeerLost("it has drawn no number")
    return hmac.digest(token, side + nonce + other + str(rank).encode(), "sha256")
