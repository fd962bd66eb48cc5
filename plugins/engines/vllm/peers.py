"""Rank 0's word to the other ranks, their answers, and how each notices that another has gone.

Every other rank opens three connections to rank 0: one for calls, one by which collectives meet
(`meeting`), and a lifeline on which both sides say that they live.  A lifeline that ends, or is
silent for too long, ends the process at either end, whatever it is waiting for: an engine is whole
or gone.  Both ends prove that they know the link's token (HMAC, as in `multiprocessing.connection`)
before a byte is unpickled.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import AuthenticationError
from multiprocessing.connection import (
    Client,
    Connection,
    answer_challenge,
    deliver_challenge,
    wait,
)
from typing import Any

from attrs import define

CALLS, MEETING, LIFE = "calls", "meeting", "life"
_CONNECT_SECONDS = 120.0
_HANDSHAKE_SECONDS = 5
"""A stranger that connects and says nothing holds the others up for so long, and no longer."""
_RETRY_SECONDS = 0.05
_BEAT_SECONDS = 0.25
_STARTING_SECONDS = 120.0


@define
class Silence:
    """How long the other side may say nothing.

    Libraries that are being imported can keep every thread of a process quiet, so that what a
    serving rank is granted comes into force when it has started.  Processes that end are noticed
    at once in any case.
    """

    serving: float
    seconds: float = _STARTING_SECONDS

    def started(self) -> None:
        """From now on it is as for a rank that serves."""
        self.seconds = self.serving


class RankError(Exception):
    """A rank failed; the message is its own."""


class Hub:
    """Rank 0's side."""

    def __init__(self, address: str, token: str, peers: int) -> None:
        host, _, port = address.rpartition(":")
        self._listener = socket.create_server((host, int(port)), backlog=3 * peers + 2)
        self._token = token.encode()
        self._count = peers
        self._calls: dict[int, Connection] = {}
        self._lives: dict[int, Connection] = {}
        self.meetings: dict[int, Connection] = {}
        """On which the other ranks ask what collectives want to know."""
        self._answers: dict[tuple[int, int], Future[Any]] = {}
        self._numbers = 0
        self._lock = threading.Lock()

    def accept(self, silence: Silence) -> None:
        """Wait for every rank, and watch them from then on; a stranger is ignored."""
        purposes = {CALLS: self._calls, MEETING: self.meetings, LIFE: self._lives}
        while any(len(connections) < self._count for connections in purposes.values()):
            sock, _ = self._listener.accept()
            connection = Connection(sock.detach())
            try:
                _limit(connection, _HANDSHAKE_SECONDS)
                deliver_challenge(connection, self._token)
                answer_challenge(connection, self._token)
                rank, purpose = connection.recv()
                _limit(connection, 0)
            except (AuthenticationError, EOFError, OSError):
                connection.close()
                continue
            _tune(connection)
            purposes[purpose][rank] = connection
        self._listener.close()
        if self._count:
            _or_end(self._receive)
            for connection in self._lives.values():
                keep_alive(connection, silence)

    def call(
        self, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any], answering: set[int] | None
    ) -> dict[int, Future[Any]]:
        """Have every rank do something; futures for the ranks in `answering`, or for all.

        What the others return is not sent; what they raise is.
        """
        with self._lock:
            self._numbers += 1
            number = self._numbers
            wanted = self._calls.keys() if answering is None else answering & self._calls.keys()
            futures: dict[int, Future[Any]] = {rank: Future() for rank in wanted}
            for rank, future in futures.items():
                self._answers[rank, number] = future
            for rank, connection in self._calls.items():
                _send(connection, (number, method, args, kwargs, rank in wanted))
        return futures

    def _receive(self) -> None:
        ranks = {connection: rank for rank, connection in self._calls.items()}
        while True:
            for connection in wait(list(ranks)):
                assert isinstance(connection, Connection)
                number, result, error = connection.recv()
                future = self._answers.pop((ranks[connection], number), None)
                if error is not None and future is None:
                    raise RankError(f"rank {ranks[connection]}: {error}")
                if future is not None:
                    if error is None:
                        future.set_result(result)
                    else:
                        future.set_exception(RankError(f"rank {ranks[connection]}: {error}"))


class Spoke:
    """The side of every other rank."""

    def __init__(self, address: str, token: str, rank: int, silence: Silence) -> None:
        host, _, port = address.rpartition(":")

        def connect(purpose: str) -> Connection:
            connection = _connect((host, int(port)), token)
            connection.send((rank, purpose))
            return connection

        self._calls, self.meeting = connect(CALLS), connect(MEETING)
        keep_alive(connect(LIFE), silence)

    def serve(self, run: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        """Do what rank 0 calls for, in its order, until it has gone."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, method, args, kwargs, answering = self._calls.recv()
                try:
                    result = run(method, args, kwargs)
                except Exception as error:  # rank 0 decides what it means
                    _send(self._calls, (number, None, f"{type(error).__name__}: {error}"))
                else:
                    if answering:
                        _send(self._calls, (number, result, None))


def _send(connection: Connection, words: Any) -> None:
    """Send by value; a connection's own `send` passes tensors on as descriptors, which the other
    side has to come for, and cannot from another machine."""
    connection.send_bytes(pickle.dumps(words))


def keep_alive(connection: Connection, silence: Silence) -> None:
    """Say that this process lives, and end it when the other side says so no longer."""

    def beat() -> None:
        while True:
            connection.send_bytes(b"")
            time.sleep(_BEAT_SECONDS)

    def listen() -> None:
        while connection.poll(silence.seconds):
            connection.recv_bytes()
        raise TimeoutError(f"nothing heard for {silence.seconds:.0f} s")

    _tune(connection)
    _or_end(beat)
    _or_end(listen)


def _or_end(watch: Callable[[], None]) -> None:
    """Run a watcher in a thread of its own; when it fails the process ends.

    Other threads may be waiting in a collective for somebody who will never come.
    """

    def run() -> None:
        try:
            watch()
        except Exception as error:  # whatever it is, the engine is not whole
            sys.stderr.write(f"another rank of this engine has gone: {error!r}\n")
            sys.stderr.flush()
        finally:
            os._exit(1)

    threading.Thread(target=run, daemon=True).start()


def _connect(address: tuple[str, int], token: str) -> Connection:
    deadline = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            connection = Client(address, authkey=token.encode())
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_SECONDS)
        else:
            _tune(connection)
            return connection


def _limit(connection: Connection, seconds: int) -> None:
    """How long one read or write may take; 0 is for ever."""
    with socket.socket(fileno=os.dup(connection.fileno())) as sock:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))


def _tune(connection: Connection) -> None:
    """No delay for small messages."""
    with socket.socket(fileno=os.dup(connection.fileno())) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
