"""The frozen picture that a decision is made from: nodes, pipelines, and earlier decisions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from attrs import evolve, field, frozen

from shuntserve_core.control_plane.policy.actions import (
    Action,
    Create,
    EndNode,
    Fail,
    Forget,
    Notice,
    Retire,
    Search,
    Stop,
    Switch,
    Withdraw,
)
from shuntserve_core.control_plane.policy.backoff import Backoff
from shuntserve_core.control_plane.policy.capacity import (
    FreeNode,
    Held,
    Holdings,
    gpus_of,
    nodes_of,
    without_gpus,
)
from shuntserve_core.control_plane.policy.search import Found, Question
from shuntserve_core.control_plane.policy.states import COMING, LIVE, NodeState, PipelineState
from shuntserve_core.control_plane.policy.strategy import Strategy
from shuntserve_core.types import Pipeline


@frozen
class NodeView:
    """A node."""

    name: str
    instance: str
    gpus: tuple[int, ...]
    state: NodeState = NodeState.UP
    deadline: float | None = None
    """When it is to be taken, if there was a notice."""
    enforced: bool = False
    """Whether it must be ended here at the deadline, because no cloud will."""
    ending: bool = False
    """Whether it is being ended already."""
    held: Mapping[int, Held] = field(factory=dict)
    """What the tensor store of each GPU holds."""

    @property
    def usable(self) -> bool:
        """Whether new pipelines may be put here."""
        return self.state is NodeState.UP and not self.ending

    @property
    def present(self) -> bool:
        """Whether it still runs what it has."""
        return self.state in (NodeState.UP, NodeState.NOTICED)

    @property
    def free(self) -> FreeNode:
        """All its GPUs, for planning."""
        return FreeNode(self.name, self.instance, self.gpus)


@frozen
class PipelineView:
    """A pipeline."""

    name: str
    plan: Pipeline
    state: PipelineState = PipelineState.SERVING
    lost: frozenset[str] = frozenset()
    """Nodes that it was put on and that have been lost since, though others of these names may be
    there again."""
    fault: str = ""
    """Why it must be replaced although it serves and its nodes stay; empty if it need not."""
    serving_since: float | None = None
    gone: bool = False
    """Whether no process of it is left."""
    kv_bytes: int = 0
    """KV memory that it needs on the GPU that needs most."""

    @property
    def live(self) -> bool:
        """Whether it has processes that are wanted."""
        return self.state in LIVE

    @property
    def serves(self) -> bool:
        """Whether requests may go to it."""
        return self.state is PipelineState.SERVING

    @property
    def ended(self) -> bool:
        """Whether it is over, with all its processes."""
        return self.gone and not self.live


@frozen
class Missing:
    """A pipeline that should run and does not: it failed, or has not been started yet."""

    name: str
    """What was there; empty for a pipeline of the first placement."""
    plan: Pipeline
    backoff: Backoff = field(factory=Backoff)


@frozen
class Replacement:
    """New pipelines that come up to replace old ones, or to be what is missing.

    It is under way from the decision until the old ones have ended, and answers for all of its
    pipelines that long; what it leaves undone is missing again at its end.
    """

    why: str
    new: tuple[str, ...]
    old: tuple[str, ...] = ()
    fills: tuple[Missing, ...] = ()
    optional: bool = False
    """Whether it only makes things better: then the old ones go on if anything fails."""
    backoff: Backoff = field(factory=Backoff)
    """Of what it replaces: the next one, if this fails."""
    started: bool = False
    abandoned: bool = False
    switched: frozenset[str] = frozenset()
    """New ones that were told to serve."""

    def concerns(self, name: str) -> bool:
        """Whether it answers for a pipeline."""
        return name in self.new or name in self.old


@frozen
class Memory:
    """What decisions leave to later ones."""

    replacements: tuple[Replacement, ...] = ()
    """Under way."""
    missing: tuple[Missing, ...] = ()
    backoffs: Mapping[str, Backoff] = field(factory=dict)
    """Of pipelines, by name: before which time they are not tried to be replaced."""
    improve: bool = False
    """Whether there may be a better placement than when it was last looked for."""
    improving: Backoff = field(factory=Backoff)
    """After better placements that failed."""
    usable: frozenset[str] = frozenset()
    """Nodes that could be used when it was last decided."""
    unplaced: Question | None = None
    """The last question about a replacement that had no answer."""
    ended: frozenset[str] = frozenset()
    """Pipelines that have ended and need nothing more."""
    number: int = 0
    """The highest of any pipeline's name."""

    def answers_for(self, name: str) -> Replacement | None:
        """The replacement that a pipeline is part of."""
        return next((r for r in self.replacements if r.concerns(name)), None)


@frozen
class Settings:
    """What the rules are set to."""

    strategy: Strategy
    switch_margin: float
    """Seconds before its deadline at which a node is left, ready or not."""
    other_shapes: bool = True
    """Whether pipelines are placed anew, with other shapes, when nodes of the same type are short
    or come back.  Without it, a pipeline waits for such nodes."""


@frozen
class View:
    """Everything that a decision depends on; all times are seconds on one clock."""

    now: float
    nodes: Mapping[str, NodeView]
    pipelines: Mapping[str, PipelineView]
    settings: Settings
    memory: Memory = field(factory=Memory)
    searching: Question | None = None
    """What the planner is busy with."""
    found: Found | None = None
    """What it has found since the last decision."""

    def pipeline(self, name: str) -> PipelineView | None:
        """One pipeline, unless it is over and forgotten."""
        return self.pipelines.get(name)

    def serving(self) -> list[PipelineView]:
        """Pipelines that serve."""
        return [pipeline for pipeline in self.pipelines.values() if pipeline.serves]

    def usable(self) -> list[FreeNode]:
        """Nodes that pipelines may be put on, with all their GPUs."""
        return [node.free for node in self.nodes.values() if node.usable]

    def going(self, pipeline: PipelineView) -> frozenset[str]:
        """Nodes of a pipeline that cannot be used any more."""
        names = nodes_of(pipeline.plan)
        return pipeline.lost | {n for n in names if n not in self.nodes or not self._stays(n)}

    def _stays(self, name: str) -> bool:
        return self.nodes[name].usable

    def leaving(self, pipeline: PipelineView) -> str:
        """Why a pipeline cannot stay as it is; empty if it can."""
        going = sorted(self.going(pipeline))
        return pipeline.fault or (f"loses {', '.join(going)}" if going else "")

    def free(self, leaving: Collection[str] = ()) -> list[FreeNode]:
        """GPUs of usable nodes that no live pipeline has, but for those that are `leaving`."""
        staying = [p for p in self.pipelines.values() if p.live and p.name not in leaving]
        used = frozenset[tuple[str, int]]().union(*(gpus_of(p.plan) for p in staying))
        return without_gpus(self.usable(), used)

    def holdings(self) -> Holdings:
        """What every tensor store holds."""
        return {
            (node.name, gpu): held
            for node in self.nodes.values()
            if node.present
            for gpu, held in node.held.items()
        }


@frozen
class Decision:
    """What to do, in this order, and what to remember."""

    actions: tuple[Action, ...]
    memory: Memory


_LEADS_TO = {
    Retire: PipelineState.DRAINING,
    Fail: PipelineState.FAILED,
    Stop: PipelineState.STOPPED,
}


def expected(view: View, action: Action) -> View:
    """The view after an action has been carried out, as far as it changes what is seen at once."""
    match action:
        case Notice(name, deadline, enforced):
            return _node(view, name, deadline=deadline, enforced=enforced, state=NodeState.NOTICED)
        case Withdraw(name):
            return _node(view, name, deadline=None, enforced=False, state=NodeState.UP)
        case EndNode(name):
            return _node(view, name, ending=True)
        case Create(name, plan):
            new = PipelineView(name, plan, PipelineState.LOADING)
            return evolve(view, pipelines={**view.pipelines, name: new})
        case Switch(_, after):
            serving = [name for name in after if view.pipelines[name].serves]
            return _pipelines(view, serving, PipelineState.DRAINING)
        case Retire(name) | Fail(name) | Stop(name):
            return _pipelines(view, [name], _LEADS_TO[type(action)])
        case Forget(name):
            rest = {n: p for n, p in view.pipelines.items() if n != name}
            return evolve(view, pipelines=rest)
        case Search(question):
            return evolve(view, searching=question)
    return view


def _node(view: View, name: str, *, state: NodeState | None = None, **changes: Any) -> View:
    """A node that is not present keeps its state."""
    node = view.nodes[name]
    changes = {**changes, "state": state} if state is not None and node.present else changes
    return evolve(view, nodes={**view.nodes, name: evolve(node, **changes)})


def _pipelines(view: View, names: Sequence[str], state: PipelineState) -> View:
    changed = {name: evolve(view.pipelines[name], state=state) for name in names}
    return evolve(view, pipelines={**view.pipelines, **changed})


def number_of(name: str) -> int:
    """Of a pipeline's name: none is used twice."""
    return int(name.lstrip("p"))


def is_coming(pipeline: PipelineView) -> bool:
    """Whether a pipeline is on its way to serving."""
    return pipeline.state in COMING
