"""The link between control plane and engine, as each side sees the other.

`shuntserve_core.link` carries it over a socket; anything with these methods will do in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from shuntserve_core.types.request import EngineInfo, EngineLoad, EngineRequest, StepOutput

STARTING = "starting"
"""It reads weights or builds its graphs."""
STANDBY = "standby"
"""It could serve if it owned KV memory."""
READY = "ready"
"""It serves."""
STOPPING = "stopping"
"""It takes no more requests, and ends."""
STATES = (STARTING, STANDBY, READY, STOPPING)
"""In the order that an engine goes through them; it never goes back."""


class LinkLost(Exception):
    """There is no engine at the other end any more; the message says why."""


class RequestRefused(Exception):
    """A handler's answer to a request that is wrong anywhere, such as a prompt that is too long."""


class EngineHandler(Protocol):
    """The engine's side.  Called on the link's own thread, so every method must return at once:
    put the request into a queue that the engine's loop reads."""

    def submit(self, request: EngineRequest) -> None:
        """Take a request.  Raises `RequestRefused` where it would be wrong on any engine."""
        ...

    def abort(self, request_id: str) -> None:
        """Drop a request within a step; unknown ids are ignored."""
        ...

    def activate(self) -> None:
        """Become the owner of the KV memory and serve: announces `ready` once it does.

        May be called again, and then changes nothing.
        """
        ...

    def load(self) -> EngineLoad:
        """How busy it is."""
        ...


class EngineLink(Protocol):
    """The control plane's side.  All methods and callbacks belong to one event loop."""

    @property
    def info(self) -> EngineInfo:
        """What the engine said of itself."""
        ...

    @property
    def state(self) -> str:
        """One of `STATES`, as last announced."""
        ...

    @property
    def load(self) -> EngineLoad:
        """As of the last heartbeat."""
        ...

    @property
    def lost(self) -> str | None:
        """Why the link is gone, or None while it is there."""
        ...

    def submit(self, request: EngineRequest, on_output: Callable[[StepOutput], None]) -> None:
        """Send a request; `on_output` hears its steps, and hears its `finish` exactly once.

        A link that is lost finishes every open request with an error, after it has called whoever
        asked by `on_lost`.  An id may be used again once it is finished or aborted; late words
        of its first use are never heard.  Raises `LinkLost`, and `RequestRefused` for what cannot
        be sent at all.
        """
        ...

    def abort(self, request_id: str) -> None:
        """Drop a request: `on_output` hears no more of it.  Unknown ids are ignored."""
        ...

    async def activate(self) -> None:
        """Make the engine own its KV memory; returns when it is ready.  Raises `LinkLost`."""
        ...

    def on_lost(self, callback: Callable[[str], None]) -> None:
        """Call with the reason when the link is lost; at once if it already is."""
        ...

    def on_state(self, callback: Callable[[str], None]) -> None:
        """Call with every state announced from now on."""
        ...

    def close(self) -> None:
        """End the link from here; the engine aborts what it was doing for us."""
        ...
