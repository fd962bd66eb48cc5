"""Nodes that come and go, and the pipelines that are kept running on them.

What is done about it is decided by `control_plane.policy`, as for a real cluster; here are only the
world, in which things take their time, and who carries decisions out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import define, field

from shuntserve_core.config.loader import Config
from shuntserve_core.control_plane.policy import actions as act
from shuntserve_core.control_plane.policy import planner
from shuntserve_core.control_plane.policy.capacity import Held, Holdings, gpus_of, nodes_of
from shuntserve_core.control_plane.policy.decide import decide
from shuntserve_core.control_plane.policy.notices import hear, named
from shuntserve_core.control_plane.policy.search import Found
from shuntserve_core.control_plane.policy.states import (
    LIVE,
    PREPARING,
    NodeState,
    PipelineState,
)
from shuntserve_core.control_plane.policy.view import (
    Memory,
    NodeView,
    PipelineView,
    Settings,
    View,
)
from shuntserve_core.simulator.engine import Engine
from shuntserve_core.simulator.nodes import SimulatedNode, new_node
from shuntserve_core.simulator.pipeline import SimulatedPipeline
from shuntserve_core.simulator.recovery import ON_DEMAND, Recovery, load_seconds
from shuntserve_core.simulator.result import Note
from shuntserve_core.traces.events import TraceEvent
from shuntserve_core.types import Pipeline
from shuntserve_core.types.spot import SpotEvent

BuildPipeline = Callable[[str, Pipeline], SimulatedPipeline]


@define(eq=False)
class SimulatedRun:
    """A pipeline from the decision to its end."""

    name: str
    plan: Pipeline
    engine: SimulatedPipeline
    state: PipelineState = PipelineState.LOADING
    lost: frozenset[str] = frozenset()
    serving_since: float | None = None
    ended: float | None = None
    nodes: frozenset[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.nodes = nodes_of(self.plan)

    @property
    def live(self) -> bool:
        """Whether it is wanted, and has GPUs."""
        return self.state in LIVE

    @property
    def view(self) -> PipelineView:
        """What a decision may know of it: an engine is gone as soon as it has ended."""
        return PipelineView(
            self.name,
            self.plan,
            self.state,
            self.lost,
            serving_since=self.serving_since,
            gone=not self.live,
        )


class SimulatedCluster:
    """What nodes and the cluster manager are to a real cluster."""

    def __init__(
        self, config: Config, recovery: Recovery, engine: Engine, build: BuildPipeline
    ) -> None:
        self.nodes: dict[str, SimulatedNode] = {}
        self.gone: list[SimulatedNode] = []
        """Nodes whose names may have been taken again; kept for the bill."""
        self.runs: list[SimulatedRun] = []
        self.notes: list[Note] = []
        self._config = config
        self._recovery = recovery
        self._engine = engine
        self._build = build
        margin = config.document.serve.switch_margin
        self._settings = Settings(recovery.how, margin, recovery.replan)
        self._memory = Memory()
        self._known: dict[str, SimulatedRun] = {}
        """Pipelines that no decision has forgotten."""
        self._found: Found | None = None
        self._markets: dict[str, str] = {}
        """By node: where it was restored."""
        self._woken = False
        self._alarms: set[float] = set()

    def start(self, plans: Sequence[Pipeline], spares: Iterable[str]) -> None:
        """Have a placement serve at once, on nodes that hold its weights."""
        market = "on-demand" if self._recovery.strategy == ON_DEMAND else ""
        for name in sorted({n for plan in plans for n in nodes_of(plan)} | set(spares)):
            node = new_node(self._config, name, market, 0.0)
            if node is not None:
                self.nodes[name] = node
        for number, plan in enumerate(plans, 1):
            self._create(f"p{number}", plan)
            self._hold(self.runs[-1])
            self._activate(self.runs[-1])
        self._memory = Memory(usable=frozenset(self.nodes), number=len(self.runs))

    def follow(self, events: Iterable[TraceEvent]) -> None:
        """Have a trace's events happen at their times."""
        if self._recovery.strategy != ON_DEMAND:
            for event in events:
                self._engine.at(event.at, self._on_event, event)

    def cost(self, end: float) -> float:
        """$ of every node until `end`."""
        return sum(node.cost(end) for node in (*self.gone, *self.nodes.values()))

    # The world

    def _on_event(self, event: TraceEvent) -> None:
        for name in named(self._node_views(), event.node):
            node = self.nodes.get(name)
            if event.kind == "lost":
                if node is not None:
                    self._vanish(node, self._recovery.detection_seconds)
                continue
            if event.kind == "restored" and node is not None and node.vanished:
                self._detect(node)
            self._markets[name] = event.market
            self._tell(name, event)
        self._wake()

    def _tell(self, name: str, event: TraceEvent) -> None:
        now = self._engine.now
        deadline = None if event.notice is None else now + event.notice
        word = SpotEvent(name, event.kind, deadline, "trace")
        default, offered = self._recovery.default_notice, self._config.cluster.catalog
        for action in hear(self._node_views(), word, now, offered, default):
            self._carry_out(action)

    def _vanish(self, node: SimulatedNode, detected: float) -> None:
        """A node is not there any more; that is known after a while."""
        if node.vanished:
            return
        node.until = self._engine.now
        node.held.clear()
        for run in self._on(node):
            run.engine.open = False  # its steps never end
        self._engine.at(self._engine.now + detected, self._detect, node)

    def _detect(self, node: SimulatedNode) -> None:
        if node.state is NodeState.LOST:
            return
        self._note("node lost", node=node.name)
        node.state, node.deadline = NodeState.LOST, None
        for run in self._on(node):
            run.lost |= {node.name}
            self._end(run, PipelineState.FAILED, f"{node.name} is lost")
        self._wake()

    def _on(self, node: SimulatedNode) -> list[SimulatedRun]:
        return [run for run in self._known.values() if run.live and node.name in run.nodes]

    def _taken(self, node: SimulatedNode, deadline: float) -> None:
        if node.deadline == deadline and not node.vanished:
            self._vanish(node, 0.0)

    def _joined(self, node: SimulatedNode) -> None:
        if node.state is NodeState.JOINING and not node.vanished:
            noticed = node.deadline is not None
            node.state = NodeState.NOTICED if noticed else NodeState.UP
            self._wake()

    # Deciding

    def _wake(self) -> None:
        """Decide once everything that happens at this time has happened."""
        if not self._woken:
            self._woken = True
            self._engine.at(self._engine.now, self._decide)

    def _decide(self) -> None:
        self._woken = False
        decision = decide(self._view())
        self._found, self._memory = None, decision.memory
        for action in decision.actions:
            self._carry_out(action)

    def _view(self) -> View:
        return View(
            self._engine.now,
            self._node_views(),
            {name: run.view for name, run in self._known.items()},
            self._settings,
            self._memory,
            found=self._found,
        )

    def _node_views(self) -> Mapping[str, NodeView]:
        return {name: node.view for name, node in self.nodes.items()}

    def _carry_out(self, action: act.Action) -> None:
        match action:
            case act.Join() | act.Notice() | act.Withdraw() | act.EndNode():
                self._change_node(action)
            case act.Search(question):
                self._found = planner.answer(self._config, question)
                self._wake()
            case act.WakeAt(at):
                if at not in self._alarms:
                    self._alarms.add(at)
                    self._engine.at(at, self._wake)
            case act.Report(what, facts):
                self._note(what, **facts)
            case act.Release():
                pass  # memory is not accounted for here
            case _:
                self._change_pipeline(action)

    def _change_node(self, action: act.NodeAction) -> None:
        match action:
            case act.Join(name):
                self._ask_for(name)
            case act.Notice(name, deadline):
                self._notice(self.nodes[name], deadline)
            case act.Withdraw(name):
                self._withdraw(self.nodes[name])
            case act.EndNode(name):
                self._vanish(self.nodes[name], 0.0)

    def _change_pipeline(self, action: act.PipelineAction) -> None:
        match action:
            case act.Create(name, plan):
                self._create(name, plan)
            case act.Start(name, afresh):
                self._start(self._known[name], afresh=afresh)
            case act.Switch(name, after):
                self._switch(self._known[name], [self._known[other] for other in after])
            case act.Retire(name, reason) | act.Stop(name, reason):
                self._end(self._known[name], PipelineState.STOPPED, reason)
            case act.Fail(name, reason):
                self._end(self._known[name], PipelineState.FAILED, reason)
            case act.Forget(name):
                del self._known[name]

    # Carrying out

    def _ask_for(self, name: str) -> None:
        node = new_node(self._config, name, self._markets.get(name, ""), self._engine.now)
        if node is None:
            return
        if name in self.nodes:
            self.gone.append(self.nodes[name])
        node.state = NodeState.JOINING
        self.nodes[name] = node
        self._engine.at(self._engine.now + self._recovery.boot_seconds, self._joined, node)

    def _notice(self, node: SimulatedNode, deadline: float) -> None:
        node.deadline = deadline
        if node.state is NodeState.UP:
            node.state = NodeState.NOTICED
        self._engine.at(deadline, self._taken, node, deadline)

    def _withdraw(self, node: SimulatedNode) -> None:
        node.deadline = None
        if node.state is NodeState.NOTICED:
            node.state = NodeState.UP

    def _create(self, name: str, plan: Pipeline) -> None:
        run = SimulatedRun(name, plan, self._build(name, plan))
        self.runs.append(run)
        self._known[name] = run

    def _start(self, run: SimulatedRun, *, afresh: bool) -> None:
        options = self._recovery
        for name, gpu in gpus_of(run.plan) if afresh else ():
            self.nodes[name].held.pop(gpu, None)
        bandwidth = options.weight_bandwidth
        seconds = load_seconds(run.plan, self._config.model, self._holdings(), bandwidth)
        self._note("weights", seconds=seconds, pipeline=run.name)
        ready = self._engine.now + seconds + options.start_seconds
        self._engine.at(ready, self._stand_by, run)

    def _stand_by(self, run: SimulatedRun) -> None:
        if run.state in PREPARING:
            self._hold(run)
            run.state = PipelineState.STANDBY
            self._wake()

    def _switch(self, run: SimulatedRun, after: Sequence[SimulatedRun]) -> None:
        for other in after:
            self._end(other, PipelineState.STOPPED, f"replaced by {run.name}")
        run.state = PipelineState.ACTIVATING
        self._engine.at(self._engine.now + self._recovery.switch_seconds, self._activate, run)

    def _activate(self, run: SimulatedRun) -> None:
        if run.live:
            run.state, run.serving_since = PipelineState.SERVING, self._engine.now
            self._note("pipeline serves", pipeline=run.name)
            self._engine.add(run.engine)
            self._wake()

    def _end(self, run: SimulatedRun, state: PipelineState, reason: str) -> None:
        if not run.live:
            return
        served = run.state is PipelineState.SERVING
        run.state, run.ended = state, self._engine.now
        if served:
            self._note("pipeline ended", pipeline=run.name, reason=reason)
            self._engine.remove(run.name, keep_tokens=self._recovery.how.migrate)
        self._wake()

    def _hold(self, run: SimulatedRun) -> None:
        """Note that the tensor stores of its GPUs hold its layers."""
        for layers, stage in zip(run.plan.layer_ranges, run.plan.stages, strict=True):
            for rank, gpu in enumerate(stage.gpus):
                self.nodes[stage.node].held[gpu] = Held(stage.tensor_parallel, rank, layers)

    def _holdings(self) -> Holdings:
        return self._view().holdings()

    def _note(self, what: str, **facts: Any) -> None:
        self.notes.append(Note(self._engine.now, what, facts))
