"""What a decision asks for: values that say why, for whoever carries them out.

None of them waits: the next decision is made when something has changed, or at the time of
`WakeAt`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from shuntserve_core.control_plane.policy.search import Question
from shuntserve_core.types import Pipeline

# About nodes


@frozen
class Join:
    """Have a node start and join."""

    node: str


@frozen
class Notice:
    """Note that a node will be taken."""

    node: str
    deadline: float
    """On the view's clock."""
    enforced: bool
    """Whether it must be ended here at the deadline, because no cloud will."""


@frozen
class Withdraw:
    """Note that a node stays after all."""

    node: str


@frozen
class EndNode:
    """End a node now."""

    node: str
    reason: str


# About pipelines


@frozen
class Create:
    """Take a new pipeline into the account; nothing of it runs yet."""

    pipeline: str
    plan: Pipeline


@frozen
class Start:
    """Load its weights and start its engine until that stands by."""

    pipeline: str
    afresh: bool = False
    """Whether its tensor stores drop what they hold and read everything anew."""


@frozen
class Switch:
    """Have an engine that stands by own its GPUs and serve, once no process of others is there."""

    pipeline: str
    after: tuple[str, ...] = ()
    """Pipelines that have GPUs of it: they are retired first."""
    release_first: bool = False
    """Whether its KV memory grows into what only the others' weights needed."""


@frozen
class Retire:
    """Move its requests elsewhere and end it."""

    pipeline: str
    reason: str


@frozen
class Fail:
    """End a pipeline that comes up in vain, as if it had failed."""

    pipeline: str
    reason: str


@frozen
class Stop:
    """End a pipeline that comes up and is not needed any more."""

    pipeline: str
    reason: str


@frozen
class Forget:
    """Drop a pipeline that has ended from the account."""

    pipeline: str


@frozen
class Release:
    """Have tensor stores drop layers that no pipeline needs any more."""


# About the decision itself


@frozen
class Search:
    """Have the planner answer; decide again with what it found."""

    question: Question


@frozen
class WakeAt:
    """Decide again at this time, if not before; it replaces an earlier one."""

    at: float
    """On the view's clock."""


@frozen
class Report:
    """Something that people want to read in the account."""

    what: str
    facts: Mapping[str, Any] = field(factory=dict)


NodeAction = Join | Notice | Withdraw | EndNode
PipelineAction = Create | Start | Switch | Retire | Fail | Stop | Forget
Action = NodeAction | PipelineAction | Release | Search | WakeAt | Report
