"""Rank 0's word to the other ranks, and their results; also how each notices that another died.

One TCP connection from every rank to rank 0.  A rank that loses it ends at once, and so does rank
0 when it loses any: an engine is whole or gone.  A rank that hangs loses nothing, so rank 0 also
asks each whether it is there.
"""

from __future__ import annotations

import os
import queue
import selectors
import socket
import sys
import threading
import time
from typing import Any

from shuntserve_plugins.engines.arrivals import PeerListener
from shuntserve_plugins.engines.peers import (
    PeerLost,
    connect,
    packed,
    receive,
    send,
    send_bytes,
)

_PURPOSE = "control"
_PING, _PONG = "are you there", "I am here"
_INTERVAL = 0.5
"""Seconds between questions."""
_MISSED, _MISSED_WHILE_STARTING = 6, 240
"""Questions in a row without a word.  Importing libraries can keep a rank from answering."""
_FILES = 4096
"""More open files than a rank ever has."""


class Hub:
    """Rank 0's side."""

    def __init__(self, address: str, token: str, peers: int) -> None:
        self._listener = PeerListener(address, token, peers)
        self._peers: dict[int, socket.socket] = {}
        self._count = peers
        self._sending = threading.Lock()
        self.missed = _MISSED_WHILE_STARTING
        """Questions that a rank may leave unanswered."""

    def accept(self) -> None:
        """Wait for every rank."""
        inside = self._listener.accept([(rank, _PURPOSE) for rank in range(1, self._count + 1)])
        self._peers = {rank: sock for (rank, _), sock in inside.items()}

    def introduce(self, address: str) -> dict[int, str]:
        """Tell every rank the addresses of all, this one's included; returns them by rank."""
        addresses = {rank: receive(sock) for rank, sock in self._peers.items()}
        addresses[0] = address
        self.tell(addresses)
        return addresses

    def tell(self, message: Any) -> None:
        """Send a message to every rank."""
        body = packed(message)
        with self._sending:
            for sock in self._peers.values():
                send_bytes(sock, body)

    def all_started(self) -> None:
        """From now on every rank answers soon."""
        self.missed = _MISSED

    def watch(self, inbox: queue.SimpleQueue[tuple[int, Any]]) -> None:
        """Put what ranks say into `inbox`, with their rank, until one is lost: then raise."""
        silent = dict.fromkeys(self._peers, 0)
        with selectors.DefaultSelector() as selector:
            for rank, sock in self._peers.items():
                selector.register(sock, selectors.EVENT_READ, rank)
            asked = time.monotonic()
            while True:
                for key, _ in selector.select(_INTERVAL if self._peers else None):
                    silent[key.data] = 0
                    message = receive(self._peers[key.data])
                    if message != _PONG:
                        inbox.put((key.data, message))
                # Counted in questions: a pause of this process is not held against the others.
                if time.monotonic() - asked >= _INTERVAL:
                    asked = time.monotonic()
                    self._ask(silent)

    def _ask(self, silent: dict[int, int]) -> None:
        for rank, questions in silent.items():
            if questions >= self.missed:
                raise PeerLost(f"rank {rank} leaves {questions} questions unanswered")
            silent[rank] = questions + 1
        self.tell(_PING)


class Spoke:
    """The side of every other rank."""

    def __init__(self, address: str, token: str, rank: int) -> None:
        self._sock = connect(address, token, rank, _PURPOSE)
        self._sending = threading.Lock()

    def introduce(self, address: str) -> dict[int, str]:
        """Tell rank 0 an address of this rank; returns those of all ranks."""
        self.tell(address)
        addresses: dict[int, str] = self.receive()
        return addresses

    def tell(self, message: Any) -> None:
        """Send a message to rank 0."""
        with self._sending:
            send(self._sock, message)

    def receive(self) -> Any:
        """The next message from rank 0; answers its questions.  Raises `PeerLost`."""
        while (message := receive(self._sock)) == _PING:
            self.tell(_PONG)
        return message


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
            # Peers and the control plane hear of it now, not when all memory has been taken down.
            os.closerange(3, _FILES)
            os._exit(1)

    threading.Thread(target=run, daemon=True).start()
