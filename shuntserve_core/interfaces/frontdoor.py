"""What clients talk to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from shuntserve_core.interfaces import optional
from shuntserve_core.journal import Journal
from shuntserve_core.types.request import StepOutput


class Sink(Protocol):
    """Where a request's tokens go; called on the event loop, must not block."""

    def on_output(self, output: StepOutput) -> None:
        """New tokens, already in the journal; the last call has `finish` set."""
        ...


class Backend(Protocol):
    """The running cluster, as a front door sees it."""

    def submit(self, journal: Journal, sink: Sink) -> None:
        """Take a request: queue it, send it, resume it elsewhere when its pipeline goes.

        Raises `Refused` at once where the queue is full or no engine can do it.  The sink is told
        the outcome exactly once, unless the request is cancelled first.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Stop a request at its engine and forget it; unknown ids are ignored."""
        ...

    @property
    def features(self) -> frozenset[str]:
        """What requests may ask for; see `EngineInfo.features`."""
        ...

    @property
    def ready(self) -> bool:
        """Whether any pipeline serves."""
        ...

    @property
    def max_length(self) -> int:
        """Longest prompt and output together, in tokens."""
        ...

    def status(self) -> dict[str, Any]:
        """Nodes, pipelines and counters, as JSON."""
        ...


class Refused(Exception):
    """A request that is not taken; `retry_after` seconds later it may be, unless None."""

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


class FrontDoor(Protocol):
    """A server; its attrs fields are the options of the `[frontdoor]` table."""

    async def start(self, backend: Backend, model_dir: str, model_name: str) -> str:
        """Listen, and return the base URL."""
        ...

    async def drain(self, deadline: float) -> None:
        """Answer no new request, finish those under way within `deadline` seconds, then close."""
        ...

    @optional
    def security_posture(self) -> Sequence[str]:
        """Every surface that it opens, and how to close it, one line each; once it listens."""
        return ["front door: its plugin does not say what it opens, nor what protects it"]


@runtime_checkable
class Addressed(Protocol):
    """A front door that knows before it starts where it will listen.

    `shuntserve doctor` looks whether that is free, and `shuntserve bench` loads it.
    """

    host: str
    """Address to listen on."""
    port: int
    """0 takes a free one."""

    @property
    def url(self) -> str:
        """Base URL by which clients of this machine reach it."""
        ...
