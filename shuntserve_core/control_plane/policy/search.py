"""What the planner is asked, and what it answers: searches may take seconds, decisions do not.

A question equals another if it would have the same answer but for which node holds which weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from shuntserve_core.control_plane.policy.capacity import FreeNode, Holdings
from shuntserve_core.types import Pipeline


@frozen
class Anywhere:
    """Which pipelines, of whatever shape, are best on these GPUs?"""

    free: tuple[FreeNode, ...]
    holdings: Holdings = field(factory=dict, eq=False)


@frozen
class Better:
    """Is there a better placement on these nodes than what runs?"""

    running: Mapping[str, Pipeline]
    """Pipelines that serve and can stay, by name."""
    nodes: tuple[FreeNode, ...]
    """All nodes that can be used, with all their GPUs."""
    busy: frozenset[str]
    """Nodes on which anything runs: the last to be kept as spares."""
    holdings: Holdings = field(factory=dict, eq=False)


Question = Anywhere | Better


@frozen
class Change:
    """What to do about pipelines: start these, and end those once they serve."""

    start: tuple[Pipeline, ...]
    end: tuple[str, ...] = ()
    """Names of running pipelines."""


@frozen
class Found:
    """A question and its answer; nothing to start where nothing was found."""

    question: Question
    change: Change = Change(())
