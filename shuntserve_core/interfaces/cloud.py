"""Where interruptions are heard of, and where instances are had."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from shuntserve_core.interfaces.launcher import NodeSpec
from shuntserve_core.types.spot import SpotEvent


class SpotSource(Protocol):
    """Yields events for as long as it runs; its attrs fields are the options of `[[spot]]`."""

    on_node: bool
    """Whether it must run on each node (a metadata endpoint), rather than once, centrally."""

    def events(self, nodes: Sequence[str]) -> AsyncIterator[SpotEvent]:
        """Events of `nodes` (one name if `on_node`).  Must survive an endpoint that does not
        answer; ends only when there can be no more events."""
        ...


class Provisioner(Protocol):
    """Gets instances of a cloud.  Nothing asks for one yet: no table of the configuration names it,
    and so it is made without arguments."""

    async def request(self, instance: str, market: str) -> NodeSpec | None:
        """Ask for one instance; None if none is to be had now.  The instance joins by itself."""
        ...

    async def release(self, node: str) -> None:
        """Give an instance back; unknown ones are ignored."""
        ...
