"""Rank 0's word to the other ranks, and their results; also how each notices that another died.

One TCP connection from every rank to rank 0.  A rank that loses it ends at once, and so does rank
0 when it loses any: an engine is whole or gone.
"""

from __future__ import annotations

import hmac
import os
import queue
import selectors
import socket
import struct
import sys
import threading
import time
from typing import Any

import msgpack

_LENGTH = struct.Struct("<I")
_NONCE_BYTES = 16
_LONGEST = 64 << 20
_CONNECT_SECONDS = 120.0
_PROOF_SECONDS = 5.0
_RETRY_SECONDS = 0.02


class PeerLost(Exception):
    """The other side has gone, or is not what it should be."""


class Hub:
    """Rank 0's side."""

    def __init__(self, address: str, token: str, peers: int) -> None:
        host, _, port = address.rpartition(":")
        self._token = token.encode()
        self._peers: dict[int, socket.socket] = {}
        self._count = peers
        self._listener = socket.create_server((host, int(port)), backlog=peers + 1)

    def accept(self) -> None:
        """Wait for every rank, and begin to watch them."""
        self._listener.settimeout(_CONNECT_SECONDS)
        while len(self._peers) < self._count:
            sock, _ = self._listener.accept()
            sock.settimeout(_PROOF_SECONDS)
            try:
                rank = self._verify(sock)
            except (PeerLost, OSError, TypeError, ValueError):
                sock.close()  # a stranger: the rank itself will come yet
                continue
            sock.settimeout(None)
            _tune(sock)
            self._peers[rank] = sock
        self._listener.close()

    def _verify(self, sock: socket.socket) -> int:
        nonce = os.urandom(_NONCE_BYTES)
        _send(sock, nonce)
        rank, proof = _receive(sock)
        if not hmac.compare_digest(proof, _proof(self._token, nonce, rank)):
            raise PeerLost("it does not know the token")
        if rank in self._peers or not 0 < rank <= self._count:
            raise PeerLost(f"there is no rank {rank}, or it is here already")
        return int(rank)

    def tell(self, message: Any) -> None:
        """Send a message to every rank."""
        body = _packed(message)
        for sock in self._peers.values():
            try:
                sock.sendall(body)
            except OSError as error:
                raise PeerLost(str(error)) from error

    def watch(self, inbox: queue.SimpleQueue[tuple[int, Any]]) -> None:
        """Put what ranks say into `inbox`, with their rank, until one is lost: then raise."""
        with selectors.DefaultSelector() as selector:
            for rank, sock in self._peers.items():
                selector.register(sock, selectors.EVENT_READ, rank)
            while True:
                for key, _ in selector.select():
                    inbox.put((key.data, _receive(self._peers[key.data])))


class Spoke:
    """The side of every other rank."""

    def __init__(self, address: str, token: str, rank: int) -> None:
        host, _, port = address.rpartition(":")
        self._sock = _connect(host, int(port))
        nonce = _receive(self._sock)
        _send(self._sock, (rank, _proof(token.encode(), nonce, rank)))
        _tune(self._sock)

    def tell(self, message: Any) -> None:
        """Send a message to rank 0."""
        _send(self._sock, message)

    def receive(self) -> Any:
        """The next message from rank 0.  Raises `PeerLost`."""
        return _receive(self._sock)


def watch_or_end(watch: Any, *arguments: Any) -> None:
    """Run a watcher in a thread of its own; when it fails the process ends, whatever it is in.

    The main thread may be waiting in a collective for somebody who will never come.
    """

    def run() -> None:
        try:
            watch(*arguments)
        except PeerLost as error:
            sys.stderr.write(f"another rank of this engine has gone: {error}\n")
            sys.stderr.flush()
        finally:
            os._exit(1)

    threading.Thread(target=run, daemon=True).start()


def _connect(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            sock = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerLost(f"rank 0 does not answer: {error}") from error
            time.sleep(_RETRY_SECONDS)
        else:
            sock.settimeout(None)
            return sock


def _tune(sock: socket.socket) -> None:
    """No delay for small messages, and a silent host counts as dead after some seconds."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
        sock.setsockopt(socket.IPPROTO_TCP, option, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _proof(token: bytes, nonce: bytes, rank: int) -> bytes:
    return hmac.digest(token, nonce + str(rank).encode(), "sha256")


def _packed(message: Any) -> bytes:
    body: bytes = msgpack.packb(message)
    return _LENGTH.pack(len(body)) + body


def _send(sock: socket.socket, message: Any) -> None:
    try:
        sock.sendall(_packed(message))
    except OSError as error:
        raise PeerLost(str(error)) from error


def _receive(sock: socket.socket) -> Any:
    """The next message; keys of maps may be numbers, as in `logit_bias`."""
    try:
        (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
        if length > _LONGEST:
            raise PeerLost(f"it announced {length} bytes")
        return msgpack.unpackb(_exactly(sock, length), strict_map_key=False)
    except (OSError, ValueError) as error:
        raise PeerLost(str(error)) from error


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = sock.recv(count, socket.MSG_WAITALL)
    if len(data) < count:
        raise PeerLost("the connection was closed")
    return data
