"""Rank 0's word to the other ranks, and their results; also how each notices that another died.

One TCP connection from every rank to rank 0.  A rank that loses it ends at once, and so does rank
0 when it loses any: an engine is whole or gone.
"""

from __future__ import annotations

import os
import queue
import selectors
import socket
import sys
import threading
from typing import Any

from shuntserve_plugins.engines.embedded.peers import (
    Door,
    PeerLost,
    knock,
    packed,
    receive,
    send,
    send_bytes,
)


class Hub:
    """Rank 0's side."""

    def __init__(self, address: str, token: str, peers: int) -> None:
        self._door = Door(address, token, backlog=peers + 1)
        self._peers: dict[int, socket.socket] = {}
        self._count = peers

    def accept(self) -> None:
        """Wait for every rank."""
        self._peers = self._door.admit(range(1, self._count + 1))

    def introduce(self, address: str) -> dict[int, str]:
        """Tell every rank the addresses of all, this one's included; returns them by rank."""
        addresses = {rank: receive(sock) for rank, sock in self._peers.items()}
        addresses[0] = address
        self.tell(addresses)
        return addresses

    def tell(self, message: Any) -> None:
        """Send a message to every rank."""
        body = packed(message)
        for sock in self._peers.values():
            send_bytes(sock, body)

    def watch(self, inbox: queue.SimpleQueue[tuple[int, Any]]) -> None:
        """Put what ranks say into `inbox`, with their rank, until one is lost: then raise."""
        with selectors.DefaultSelector() as selector:
            for rank, sock in self._peers.items():
                selector.register(sock, selectors.EVENT_READ, rank)
            while True:
                for key, _ in selector.select():
                    inbox.put((key.data, receive(self._peers[key.data])))


class Spoke:
    """The side of every other rank."""

    def __init__(self, address: str, token: str, rank: int) -> None:
        self._sock = knock(address, token, rank)

    def introduce(self, address: str) -> dict[int, str]:
        """Tell rank 0 an address of this rank; returns those of all ranks."""
        self.tell(address)
        addresses: dict[int, str] = self.receive()
        return addresses

    def tell(self, message: Any) -> None:
        """Send a message to rank 0."""
        send(self._sock, message)

    def receive(self) -> Any:
        """The next message from rank 0.  Raises `PeerLost`."""
        return receive(self._sock)


def watch_or_end(watch: Any, *arguments: Any) -> None:
    """Run a watcher in a thread of its own; when it fails the process ends, whatever it is in.

    The main thread may be waiting within a step for somebody who will never come.
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
