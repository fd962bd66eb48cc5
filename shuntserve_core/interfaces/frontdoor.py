"""What clients talk to."""

from __future__ import annotations

from typing import Any, Protocol

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
