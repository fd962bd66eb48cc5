"""Where ranks connect to, and who else comes there.

Anybody may connect, so all handshakes are under way at the same time, each within some seconds, and
no more than so many at once: who comes when all places are taken gets that of the oldest, because a
rank needs a moment only.  Strangers that are silent, slow or lie hold nobody up.
"""

from __future__ import annotations

import hmac
import os
import selectors
import socket
import time
from collections.abc import Collection

import msgpack
from attrs import define, field

from shuntserve_plugins.engines.peers import (
    ACCEPTS,
    CONNECTS,
    LENGTH,
    NONCE_BYTES,
    PROOF_BYTES,
    REFUSED,
    PeerLost,
    Place,
    packed,
    proof_of,
    tune,
)

PROOF_SECONDS = 5.0
"""For the whole of one handshake: a byte now and then does not make it longer."""
MOST_UNDER_WAY = 64
ALL_SECONDS = 300.0
"""Until every rank is there: a node may have libraries to import before it starts one."""


@define
class _Arrival:
    """Somebody who has connected, and has proved nothing yet."""

    sock: socket.socket
    nonce: bytes
    deadline: float
    heard: bytearray = field(factory=bytearray)


class PeerListener:
    """Where other ranks connect to.  Port 0 takes a free one; `address` says which."""

    def __init__(self, address: str, token: str, ranks: int) -> None:
        host, _, port = address.rpartition(":")
        self._key = token.encode()
        self._listener = socket.create_server(
            (host, int(port)), backlog=2 * MOST_UNDER_WAY + 4 * ranks
        )
        self._listener.setblocking(False)
        self.address = f"{host}:{self._listener.getsockname()[1]}"

    def accept(
        self, places: Collection[Place], *, seconds: float = ALL_SECONDS
    ) -> dict[Place, socket.socket]:
        """Wait for these, once each, and close.  Strangers are turned away.

        Raises `PeerLost` where some have not come within `seconds`.
        """
        deadline = time.monotonic() + seconds
        with self._listener, selectors.DefaultSelector() as selector:
            reception = _Reception(self._key, frozenset(places), selector)
            selector.register(self._listener, selectors.EVENT_READ)
            try:
                while reception.missing:
                    if time.monotonic() > deadline:
                        raise PeerLost(f"{reception.absent()} did not come within {seconds:.0f} s")
                    for key, _ in selector.select(reception.patience(deadline)):
                        if key.data is None:
                            reception.admit(self._listener)
                        else:
                            reception.hear(key.data)
                    reception.expire()
            except PeerLost:
                for sock in reception.inside.values():
                    sock.close()
                raise
            finally:
                reception.close()
        for sock in reception.inside.values():
            tune(sock)
        return reception.inside


class _Reception:
    """Those under way, the oldest first, and those who are inside."""

    def __init__(
        self, key: bytes, places: frozenset[Place], selector: selectors.BaseSelector
    ) -> None:
        self._key, self._places, self._selector = key, places, selector
        self._under_way: dict[socket.socket, _Arrival] = {}
        self.inside: dict[Place, socket.socket] = {}

    @property
    def missing(self) -> set[Place]:
        """Who is to come yet."""
        return set(self._places - self.inside.keys())

    def absent(self) -> str:
        """Their ranks, in words."""
        return f"ranks {', '.join(map(str, sorted({rank for rank, _ in self.missing})))}"

    def patience(self, deadline: float) -> float:
        """Seconds until something ends if nobody says anything."""
        first = min((one.deadline for one in self._under_way.values()), default=deadline)
        return max(0.0, min(first, deadline) - time.monotonic())

    def admit(self, listener: socket.socket) -> None:
        """Greet whoever connects."""
        try:
            sock, _ = listener.accept()
        except OSError:  # it has gone again
            return
        while len(self._under_way) >= MOST_UNDER_WAY:
            self._drop(next(iter(self._under_way.values())))
        sock.setblocking(False)
        one = _Arrival(sock, os.urandom(NONCE_BYTES), time.monotonic() + PROOF_SECONDS)
        self._under_way[sock] = one
        self._selector.register(sock, selectors.EVENT_READ, one)
        self._say(one, one.nonce)

    def hear(self, one: _Arrival) -> None:
        """Take in what somebody says, and decide once that is a message."""
        if one.sock not in self._under_way:  # dropped for somebody who came with it
            return
        try:
            data = one.sock.recv(LENGTH.size + PROOF_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(one)
            return
        one.heard += data
        if len(one.heard) < LENGTH.size:
            return
        (length,) = LENGTH.unpack_from(one.heard)
        if length > PROOF_BYTES or len(one.heard) > LENGTH.size + length:
            self._drop(one)
        elif len(one.heard) == LENGTH.size + length:
            self._decide(one, bytes(one.heard[LENGTH.size :]))

    def expire(self) -> None:
        """Turn away those whose time is over."""
        now = time.monotonic()
        for one in [one for one in self._under_way.values() if one.deadline <= now]:
            self._drop(one)

    def close(self) -> None:
        """Turn away everybody who is still under way."""
        for one in list(self._under_way.values()):
            self._drop(one)

    def _decide(self, one: _Arrival, body: bytes) -> None:
        try:
            place, other, proof = _claim(body)
        except (ValueError, TypeError):
            self._drop(one)
            return
        expected = proof_of(self._key, CONNECTS, one.nonce, other, place)
        if not hmac.compare_digest(proof, expected) or place not in self.missing:
            self._say(one, REFUSED)
            self._drop(one)
            return
        if self._say(one, proof_of(self._key, ACCEPTS, one.nonce, other, place)):
            self._forget(one)
            self.inside[place] = one.sock

    def _say(self, one: _Arrival, message: bytes) -> bool:
        """Send a message, for which a new connection always has room."""
        try:
            one.sock.sendall(packed(message))
        except OSError:
            self._drop(one)
            return False
        return True

    def _forget(self, one: _Arrival) -> None:
        if self._under_way.pop(one.sock, None) is not None:
            self._selector.unregister(one.sock)

    def _drop(self, one: _Arrival) -> None:
        self._forget(one)
        one.sock.close()


def _claim(body: bytes) -> tuple[Place, bytes, bytes]:
    """Who somebody says that they are, their number, and their proof.  Raises `ValueError`."""
    rank, purpose, other, proof = msgpack.unpackb(body)
    sound = type(rank) is int and isinstance(purpose, str) and isinstance(proof, bytes)
    if not sound or not isinstance(other, bytes) or len(other) != NONCE_BYTES:
        raise ValueError("no claim of a rank")
    return (rank, purpose), other, proof
