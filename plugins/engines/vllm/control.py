"""Rank 0's word to the other ranks, their answers, and how each notices that another has gone.

Every other rank opens three connections to rank 0: one for calls, one by which collectives meet
(`meeting`), and a lifeline on which both sides say that they live.  A lifeline that ends, or is
silent for too long, ends the process at either end, whatever it is waiting for: an engine is whole
or gone.  Both ends of each prove that they know the link's token.  Calls and answers are read as
`payload` reads them: they can be data, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from attrs import define

from shuntserve_plugins.engines.arrivals import PeerListener
from shuntserve_plugins.engines.peers import (
    Closed,
    PeerLost,
    connect,
    framed,
    receive_body,
    send_bytes,
)

CALLS, MEETING, LIFE = PURPOSES = ("calls", "meeting", "life")
_BEAT = b"\0"
_BEAT_SECONDS = 0.25
_STARTING_SECONDS = 120.0
_MOST_BYTES = 1 << 30
"""Of one call or answer.  Prompts of the longest requests take some hundred kB."""


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


class Payload(Protocol):
    """How values become bytes, and bytes values: `payload`, which imports vLLM."""

    def packed(self, value: Any) -> bytes:
        """A value as bytes."""
        ...

    def unpacked(self, data: bytes | bytearray) -> Any:
        """The value."""
        ...


class Hub:
    """Rank 0's side."""

    def __init__(self, address: str, token: str, peers: int) -> None:
        self._listener = PeerListener(address, token, peers)
        self.address = self._listener.address
        self._count = peers
        self._calls: dict[int, socket.socket] = {}
        self.meetings: dict[int, socket.socket] = {}
        """On which the other ranks ask what collectives want to know."""
        self._answers: dict[tuple[int, int], Future[Any]] = {}
        self._numbers = 0
        self._lock = threading.Lock()
        self._payload: Payload | None = None

    def accept(self, silence: Silence) -> None:
        """Wait for every rank, and watch them from then on; a stranger is ignored.

        Raises `PeerLost` where some do not come.
        """
        others = range(1, self._count + 1)
        inside = self._listener.accept([(rank, one) for rank in others for one in PURPOSES])
        self._calls = {rank: inside[rank, CALLS] for rank in others}
        self.meetings = {rank: inside[rank, MEETING] for rank in others}
        for rank in others:
            keep_alive(inside[rank, LIFE], silence)

    def speak(self, payload: Payload) -> None:
        """Read answers from now on."""
        self._payload = payload
        if self._count:
            _or_end(lambda: self._receive(payload))

    def call(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], answering: set[int] | None
    ) -> dict[int, Future[Any]]:
        """Have every rank do something; futures for the ranks in `answering`, or for all.

        What the others return is not sent; what they raise is.
        """
        if not self._count:
            return {}
        assert self._payload is not None
        with self._lock:
            self._numbers += 1
            number = self._numbers
            wanted = self._calls.keys() if answering is None else answering & self._calls.keys()
            futures: dict[int, Future[Any]] = {rank: Future() for rank in wanted}
            body = self._payload.packed([number, method, list(args), kwargs, sorted(wanted)])
            if len(body) > _MOST_BYTES:
                raise RankError(f"{method} of {len(body)} bytes is more than ranks take")
            for rank, future in futures.items():
                self._answers[rank, number] = future
            message = framed(body)
            for sock in self._calls.values():
                send_bytes(sock, message)
        return futures

    def _receive(self, payload: Payload) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, sock in self._calls.items():
                selector.register(sock, selectors.EVENT_READ, rank)
            while True:
                for key, _ in selector.select():
                    body = receive_body(self._calls[key.data], longest=_MOST_BYTES)
                    self._take(key.data, *payload.unpacked(body))

    def _take(self, rank: int, number: int, result: Any, error: str | None) -> None:
        future = self._answers.pop((rank, number), None)
        if error is not None:
            failure = RankError(f"rank {rank}: {error}")
            if future is None:
                raise failure
            future.set_exception(failure)
        elif future is not None:
            future.set_result(result)


class Spoke:
    """The side of every other rank."""

    def __init__(self, address: str, token: str, rank: int, silence: Silence) -> None:
        self._rank = rank
        self._calls, self.meeting, life = (
            connect(address, token, rank, purpose) for purpose in PURPOSES
        )
        keep_alive(life, silence)

    def serve(
        self, payload: Payload, run: Callable[[str, tuple[Any, ...], dict[str, Any]], Any]
    ) -> None:
        """Do what rank 0 calls for, in its order, until it has gone."""
        with contextlib.suppress(Closed):
            while True:
                body = receive_body(self._calls, longest=_MOST_BYTES)
                number, method, args, kwargs, answering = payload.unpacked(body)
                try:
                    result = run(method, args, kwargs)
                    wanted = self._rank in answering
                    answer = payload.packed([number, result, None]) if wanted else b""
                except Exception as error:  # rank 0 decides what it means
                    answer = payload.packed([number, None, f"{type(error).__name__}: {error}"])
                if answer:
                    send_bytes(self._calls, framed(answer))


def keep_alive(sock: socket.socket, silence: Silence) -> None:
    """Say that this process lives, and end it when the other side says so no longer."""

    def beat() -> None:
        while True:
            send_bytes(sock, _BEAT)
            time.sleep(_BEAT_SECONDS)

    def listen() -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            while selector.select(silence.seconds):
                if not sock.recv(64):
                    raise Closed("the connection was closed")
        raise PeerLost(f"nothing heard for {silence.seconds:.0f} s")

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
