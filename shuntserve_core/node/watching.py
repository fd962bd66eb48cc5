"""Spot sources that a node listens to itself: which, and what they said that still stands."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from attrs import evolve, field, frozen

from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.config.options import structure_options
from shuntserve_core.interfaces.cloud import SpotSource
from shuntserve_core.registry import Registry
from shuntserve_core.types.spot import SpotEvent

logger = logging.getLogger(__name__)


@frozen
class SpotWatch:
    """A wish that a node listens to a spot source."""

    source: str
    options: Mapping[str, Any] = field(factory=dict)
    """Paths in full."""
    default_notice: float = 120.0
    """Seconds that a notice without a deadline leaves, from when it is first heard."""


class Watching:
    """The sources of one node.  What they say is given to `emit` as events."""

    def __init__(self, node: str, emit: Callable[..., None]) -> None:
        self._node, self._emit = node, emit
        self._tasks: list[tuple[SpotWatch, asyncio.Task[None]]] = []
        self._standing: dict[int, dict[str, Any]] = {}
        """By the watch's identity, the notice that was not withdrawn."""

    @property
    def standing(self) -> list[dict[str, Any]]:
        """Notices that were not withdrawn: the next control plane must hear of them."""
        return list(self._standing.values())

    def follow(self, watches: Sequence[SpotWatch], registry: Registry) -> None:
        """Listen to these and to no others; one that goes on is not disturbed.

        Raises `UserError` for one that cannot be made, and then changes nothing.
        """
        going = [(watch, task) for watch, task in self._tasks if watch in watches]
        known = [watch for watch, _ in going]
        new = [(watch, _made(watch, registry)) for watch in watches if watch not in known]
        for watch, task in self._tasks:
            if watch not in watches:
                task.cancel()
                self._standing.pop(id(watch), None)
        started = [(watch, asyncio.create_task(self._listen(watch, s))) for watch, s in new]
        self._tasks = [*going, *started]

    async def _listen(self, watch: SpotWatch, source: SpotSource) -> None:
        try:
            async for event in source.events((self._node,)):
                self._heard(watch, event)
        except Exception as error:
            logger.exception("spot source %s failed", watch.source)
            self._emit(event="spot-failed", source=watch.source, reason=str(error))

    def _heard(self, watch: SpotWatch, event: SpotEvent) -> None:
        said = attrs.asdict(event)
        if event.kind == "notice":
            if event.deadline is None:
                said = attrs.asdict(evolve(event, deadline=self._deadline(watch)))
            self._standing[id(watch)] = said
        elif event.kind == "withdrawn":
            self._standing.pop(id(watch), None)
        self._emit(event="spot", spot=said)

    def _deadline(self, watch: SpotWatch) -> float:
        """A notice that is repeated does not begin anew."""
        before = self._standing.get(id(watch))
        return float(before["deadline"]) if before else time.time() + watch.default_notice

    def close(self) -> None:
        """Listen no more."""
        for _, task in self._tasks:
            task.cancel()


def _made(watch: SpotWatch, registry: Registry) -> SpotSource:
    cls = registry.get("spot-source", watch.source)
    mistakes = Mistakes("")
    source = structure_options(cls, watch.options, registry, mistakes, key=f"spot {watch.source}")
    mistakes.raise_if_any()
    assert source is not None
    return source
