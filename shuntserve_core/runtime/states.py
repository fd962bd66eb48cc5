"""The states of nodes and pipelines, and every way from one to another.

A node:

    joining ──> up <──> noticed ──> lost
       └────────┴──────────────────^

A pipeline (one engine on given GPUs; its replacement is another pipeline):

    loading ──> starting ──> standby ──> activating ──> serving ──> draining ──> stopped
       └───────────┴────────────┴────────────┴─────────────┴───────────┴──> failed ──> stopped

`standby` is an engine that has its weights and could serve if it owned KV memory: where a plan
replaces a pipeline on the same GPUs, it waits there until the old one has let go.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Generic, TypeVar

from shuntserve_core.control_plane.policy.states import (
    COMING,
    LIVE,
    NodeState,
    PipelineState,
)

__all__ = [
    "COMING",
    "LIVE",
    "NODE_TRANSITIONS",
    "PIPELINE_TRANSITIONS",
    "Machine",
    "NodeState",
    "PipelineState",
]

logger = logging.getLogger(__name__)


S = TypeVar("S", bound=StrEnum)

NODE_TRANSITIONS: Mapping[NodeState, frozenset[NodeState]] = {
    NodeState.JOINING: frozenset({NodeState.UP, NodeState.LOST}),
    NodeState.UP: frozenset({NodeState.NOTICED, NodeState.LOST}),
    NodeState.NOTICED: frozenset({NodeState.UP, NodeState.LOST}),
    NodeState.LOST: frozenset(),
}
_P = PipelineState
PIPELINE_TRANSITIONS: Mapping[PipelineState, frozenset[PipelineState]] = {
    _P.LOADING: frozenset({_P.STARTING, _P.FAILED, _P.STOPPED}),
    _P.STARTING: frozenset({_P.STANDBY, _P.FAILED, _P.STOPPED}),
    _P.STANDBY: frozenset({_P.ACTIVATING, _P.FAILED, _P.STOPPED}),
    _P.ACTIVATING: frozenset({_P.SERVING, _P.FAILED, _P.STOPPED}),
    _P.SERVING: frozenset({_P.DRAINING, _P.FAILED, _P.STOPPED}),
    _P.DRAINING: frozenset({_P.FAILED, _P.STOPPED}),
    _P.FAILED: frozenset({_P.STOPPED}),
    _P.STOPPED: frozenset(),
}


class Machine(Generic[S]):
    """One thing's state; refuses what is not in the table, logs and counts the rest."""

    def __init__(
        self,
        name: str,
        initial: S,
        table: Mapping[S, frozenset[S]],
        counts: Counter[tuple[str, str]],
        on_change: Callable[[str, S, S, str], None] | None = None,
    ) -> None:
        self.name = name
        self.state = initial
        self._table = table
        self._counts = counts
        self._on_change = on_change

    def to(self, state: S, reason: str) -> None:
        """Go to another state; the same one again changes nothing.

        Raises ValueError for a way that the diagram does not show.
        """
        old = self.state
        if state == old:
            return
        if state not in self._table[old]:
            raise ValueError(f"{self.name}: no way from {old} to {state} ({reason})")
        self.state = state
        self._counts[str(old), str(state)] += 1
        logger.info("%s: %s -> %s (%s)", self.name, old, state, reason)
        if self._on_change is not None:
            self._on_change(self.name, old, state, reason)
