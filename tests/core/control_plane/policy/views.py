"""Small pictures of a cluster, to ask what would be decided."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from shuntserve_core.control_plane.policy.actions import Action, Report, WakeAt
from shuntserve_core.control_plane.policy.backoff import Backoff
from shuntserve_core.control_plane.policy.decide import decide
from shuntserve_core.control_plane.policy.notices import hear
from shuntserve_core.control_plane.policy.states import NodeState, PipelineState
from shuntserve_core.control_plane.policy.strategy import Strategy
from shuntserve_core.control_plane.policy.view import (
    Memory,
    Missing,
    NodeView,
    PipelineView,
    Replacement,
    Settings,
    View,
    expected,
)
from shuntserve_core.types import Estimate, Pipeline, Stage
from shuntserve_core.types.spot import SpotEvent

NOW = 1000.0
MARGIN = 2.0
ESTIMATE = Estimate(1, 1, 1, 0, 0, 0, ())


def plan(*nodes: str) -> Pipeline:
    """Eight layers on the first GPU of each of these nodes."""
    layers = 8 // len(nodes)
    stages = (Stage(name.partition("#")[0], 1, layers, name, (0,)) for name in nodes)
    return Pipeline(tuple(stages), ESTIMATE)


def node(name: str, state: str = "up", **more: Any) -> NodeView:
    """A node with one GPU; `deadline` in seconds from now."""
    if more.get("deadline") is not None:
        more["deadline"] += NOW
    return NodeView(name, name.partition("#")[0], (0,), NodeState(state), **more)


def pipeline(name: str, *nodes: str, state: str = "serving", **more: Any) -> PipelineView:
    """A pipeline that has served for long."""
    more = {"serving_since": 0.0 if state == "serving" else None, **more}
    return PipelineView(name, plan(*nodes), PipelineState(state), **more)


def ended(name: str, *nodes: str, served: float | None = None, **more: Any) -> PipelineView:
    """A pipeline that failed, after so many seconds of serving, and left no process."""
    since = None if served is None else NOW - served
    return pipeline(name, *nodes, state="failed", serving_since=since, gone=True, **more)


def view(
    *things: NodeView | PipelineView,
    strategy: str = "shuntserve",
    shapes: bool = True,
    **memory: Any,
) -> View:
    """Nodes and pipelines, and what was decided before."""
    nodes = {thing.name: thing for thing in things if isinstance(thing, NodeView)}
    runs = {thing.name: thing for thing in things if isinstance(thing, PipelineView)}
    usable = frozenset(name for name, one in nodes.items() if one.usable)
    settings = Settings(Strategy.named(strategy), MARGIN, shapes)
    return View(NOW, nodes, runs, settings, Memory(**{"usable": usable, **memory}))


def replacing(new: str, old: str = "", *, fills: str = "", **more: Any) -> Replacement:
    """A replacement under way, of `old` or of what is missing on the node `fills`."""
    missing = (Missing("p0", plan(fills)),) if fills else ()
    more = {"started": True, **more}
    return Replacement("replacement", tuple(new.split()), tuple(old.split()), missing, **more)


def missing(name: str, *nodes: str, failures: int = 0, wait: float = 0.0) -> Missing:
    """A pipeline that should run on these nodes, and may be tried again after `wait` seconds."""
    return Missing(name, plan(*nodes), Backoff(failures, NOW + wait))


def told(picture: View, name: str, kind: str, notice: float | None = None, **more: Any) -> View:
    """The view after something was said about a node, as it is carried out."""
    deadline = None if notice is None else picture.now + notice
    event = SpotEvent(name, kind, deadline, "test", **more)
    for action in hear(picture.nodes, event, picture.now, ["a", "b"]):
        picture = expected(picture, action)
    return picture


def later(picture: View, seconds: float) -> View:
    """The same, so many seconds later."""
    return evolve(picture, now=picture.now + seconds)


def done(picture: View) -> list[Action]:
    """What is decided to be done; not what is reported, or when to look again."""
    actions = decide(picture).actions
    return [action for action in actions if not isinstance(action, Report | WakeAt)]


def wakes(picture: View) -> float | None:
    """In how many seconds the next look is taken."""
    times = [a.at for a in decide(picture).actions if isinstance(a, WakeAt)]
    return times[0] - picture.now if times else None


def reports(picture: View) -> list[str]:
    """What is told of the decision."""
    return [action.what for action in decide(picture).actions if isinstance(action, Report)]
