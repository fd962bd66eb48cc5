"""Nodes that come and go, and the pipelines that are kept running on them.

The decisions are the runtime's: its planner chooses what runs in place of what is lost, and the
order of things is that of its manager and of its strategies.  Only time is virtual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from attrs import define, field

from shuntserve_core.config.loader import Config
from shuntserve_core.runtime import planner
from shuntserve_core.runtime.planner import Held
from shuntserve_core.simulator.engine import Engine
from shuntserve_core.simulator.nodes import NodeState, SimulatedNode, new_node
from shuntserve_core.simulator.pipeline import SimulatedPipeline
from shuntserve_core.simulator.recovery import ON_DEMAND, Recovery, load_seconds
from shuntserve_core.simulator.result import Note
from shuntserve_core.traces.events import TraceEvent
from shuntserve_core.types import Pipeline

COMING, STANDBY, SERVING, FAILED, STOPPED = "coming", "standby", "serving", "failed", "stopped"
BuildPipeline = Callable[[str, Pipeline], SimulatedPipeline]


@define(eq=False)
class SimulatedRun:
    """A pipeline from the decision to its end."""

    name: str
    plan: Pipeline
    engine: SimulatedPipeline
    state: str = COMING
    replaced: bool = False
    """Whether a successor is on its way."""
    losing: bool = False
    """Whether a node of it will go."""
    serving_since: float | None = None
    ended: float | None = None
    nodes: frozenset[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.nodes = planner.nodes_of(self.plan)

    @property
    def live(self) -> bool:
        """Whether it is wanted, and has GPUs."""
        return self.state in (COMING, STANDBY, SERVING)


class SimulatedCluster:
    """What the cluster manager is to a real cluster."""

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
        self._how = recovery.how
        self._engine = engine
        self._build = build
        self._woken = False
        self._capacity_came = False

    def start(self, plans: Sequence[Pipeline], spares: Iterable[str]) -> None:
        """Have a placement serve at once, on nodes that hold its weights."""
        market = "on-demand" if self._recovery.strategy == ON_DEMAND else ""
        for name in sorted({n for plan in plans for n in planner.nodes_of(plan)} | set(spares)):
            node = new_node(self._config, name, market, 0.0)
            if node is not None:
                self.nodes[name] = node
        for plan in plans:
            run = self._new_run(plan)
            self._hold(run)
            self._serve(run)

    def follow(self, events: Iterable[TraceEvent]) -> None:
        """Have a trace's events happen at their times."""
        if self._recovery.strategy != ON_DEMAND:
            for event in events:
                self._engine.at(event.at, self._on_event, event)

    def cost(self, end: float) -> float:
        """$ of every node until `end`."""
        return sum(node.cost(end) for node in (*self.gone, *self.nodes.values()))

    # What happens to nodes

    def _on_event(self, event: TraceEvent) -> None:
        for name in self._named(event):
            node = self.nodes.get(name)
            if event.kind == "restored":
                if node is None or node.state is NodeState.LOST:
                    self._ask_for(name, event.market)
            elif node is None or not node.present:
                continue
            elif event.kind == "notice":
                self._notice(node, event)
            elif event.kind == "lost":
                self._note("lost", node=name)
                self._lost(node, detected=self._recovery.detection_seconds)
            elif event.kind == "withdrawn" and node.state is NodeState.NOTICED:
                self._note("withdrawn", node=name)
                node.state, node.deadline = NodeState.UP, None
                self._came()

    def _named(self, event: TraceEvent) -> list[str]:
        """The nodes that an event is about: all of a type, where it names only the type."""
        if "#" in event.node:
            return [event.node]
        return [node.name for node in self.nodes.values() if node.instance == event.node]

    def _ask_for(self, name: str, market: str) -> None:
        node = new_node(self._config, name, market, self._engine.now)
        if node is None:
            self._note("restored node is of no offered type", node=name)
            return
        if name in self.nodes:
            self.gone.append(self.nodes[name])
        node.state = NodeState.BOOTING
        self.nodes[name] = node
        self._note("restored", node=name, market=node.market)
        self._engine.at(self._engine.now + self._recovery.boot_seconds, self._joined, node)

    def _joined(self, node: SimulatedNode) -> None:
        if node.state is NodeState.BOOTING:
            node.state = NodeState.UP
            self._came()

    def _came(self) -> None:
        self._capacity_came = True
        self._wake()

    def _notice(self, node: SimulatedNode, event: TraceEvent) -> None:
        notice = self._recovery.default_notice if event.notice is None else event.notice
        deadline = self._engine.now + notice
        if node.deadline is not None and deadline >= node.deadline:
            return
        node.state, node.deadline = NodeState.NOTICED, deadline
        self._note("notice", node=node.name, seconds=notice)
        margin = self._config.document.serve.switch_margin
        self._engine.at(max(deadline - margin, self._engine.now), self._leave, node, deadline)
        self._engine.at(deadline, self._taken, node, deadline)
        self._wake()

    def _leave(self, node: SimulatedNode, deadline: float) -> None:
        """Get everything off a node shortly before it goes, ready or not."""
        if node.deadline == deadline and node.present:
            for run in self._serving():
                if node.name in run.nodes:
                    self._retire(run, f"{node.name} goes")

    def _taken(self, node: SimulatedNode, deadline: float) -> None:
        if node.deadline == deadline and node.present:
            self._lost(node, detected=0.0)

    def _lost(self, node: SimulatedNode, detected: float) -> None:
        node.state, node.until = NodeState.LOST, self._engine.now
        node.held.clear()
        for run in self.runs:
            if run.live and node.name in run.nodes:
                run.engine.open = False  # its steps never end
                self._engine.at(self._engine.now + detected, self._fail, run)

    # What runs

    def _wake(self) -> None:
        """Decide once everything that happens at this time has happened."""
        if not self._woken:
            self._woken = True
            self._engine.at(self._engine.now, self._reconcile)

    def _reconcile(self) -> None:
        self._woken = False
        leaving = {node.name for node in self.nodes.values() if not node.usable}
        for run in self.runs:
            if run.state in (COMING, STANDBY) and run.nodes & leaving:
                self._fail(run)
            run.losing = run.state == SERVING and bool(run.nodes & leaving)
        orphans = [
            run
            for run in self.runs
            if not run.replaced and (run.losing or run.state in (FAILED, STOPPED))
        ]
        if orphans:
            self._replace(orphans)
        elif self._capacity_came and not any(r.state in (COMING, STANDBY) for r in self.runs):
            self._improve()

    def _replace(self, orphans: list[SimulatedRun]) -> None:
        staying = [run for run in self.runs if run.live and run not in orphans]
        used = frozenset[tuple[str, int]]().union(*(planner.gpus_of(r.plan) for r in staying))
        usable = [node.free for node in self.nodes.values() if node.usable]
        free = planner.without_gpus(usable, used)
        gone = {node.name for node in self.nodes.values() if not node.usable}
        if self._recovery.replan:
            doomed = {run.name: run.plan for run in orphans}
            plans = planner.successors(self._config, doomed, gone, free, self._holdings())
            left = [] if plans else orphans
        else:
            plans, left = _same_shapes(orphans, gone, free)
        if left:
            self._note("no replacement fits", pipelines=[run.name for run in left])
        for run in orphans:
            # With other shapes to choose from, what is gone is forgotten and capacity that comes
            # back is placed anew; without, it waits for nodes of its own types.
            forgotten = self._recovery.replan and not run.live
            run.replaced = run not in left or forgotten
        if plans:
            self._begin(plans, [run for run in orphans if run not in left], needed=True)

    def _improve(self) -> None:
        self._capacity_came = False
        if not self._recovery.replan:
            return
        serving = {run.name: run for run in self._serving()}
        change = planner.better_placement(
            self._config,
            {name: run.plan for name, run in serving.items()},
            [node.free for node in self.nodes.values() if node.usable],
            {name for run in self.runs if run.live for name in run.nodes},
            self._holdings(),
        )
        if change is not None:
            old = [serving[name] for name in change.end]
            for run in old:
                run.replaced = True
            self._begin(change.start, old, needed=not serving)

    def _begin(self, plans: Sequence[Pipeline], old: list[SimulatedRun], *, needed: bool) -> None:
        new = [self._new_run(plan) for plan in plans]
        names = {"start": [run.name for run in new], "end": [run.name for run in old]}
        self._note("replacement" if needed else "better placement", **names)
        if self._how.concurrent:
            self._prepare(new, old)
            return
        margin = self._config.document.serve.switch_margin
        deadlines = [
            node.deadline - margin
            for run in old
            if run.live
            for node in map(self.nodes.get, run.nodes)
            if node is not None and node.deadline is not None
        ]
        now = self._engine.now
        self._engine.at(max(min(deadlines, default=now), now), self._end_first, new, old)

    def _end_first(self, new: list[SimulatedRun], old: list[SimulatedRun]) -> None:
        """Without concurrent initialization: stop what runs, and start from nothing."""
        for run in old:
            self._retire(run, "its successor is to start")
        for run in new:
            for name, gpu in planner.gpus_of(run.plan):
                if name in self.nodes:
                    self.nodes[name].held.pop(gpu, None)
        self._prepare(new, old)

    def _prepare(self, new: list[SimulatedRun], old: list[SimulatedRun]) -> None:
        options, now = self._recovery, self._engine.now
        slowest = max(
            load_seconds(run.plan, self._config.model, self._holdings(), options.weight_bandwidth)
            for run in new
        )
        self._note("weights", seconds=slowest, pipelines=[run.name for run in new])
        self._engine.at(now + slowest + options.start_seconds, self._stand_by, new, old)

    def _stand_by(self, new: list[SimulatedRun], old: list[SimulatedRun]) -> None:
        """Take GPUs from those that have them, and give them to the new engines."""
        ready = [run for run in new if run.state == COMING]
        for run in ready:
            self._hold(run)
            run.state = STANDBY
            gpus = planner.gpus_of(run.plan)
            for other in self._serving():
                if planner.gpus_of(other.plan) & gpus:
                    self._retire(other, f"replaced by {run.name}")
        if ready:
            after = self._engine.now + self._recovery.switch_seconds
            self._engine.at(after, self._activate, ready, old)
        self._wake()

    def _activate(self, new: list[SimulatedRun], old: list[SimulatedRun]) -> None:
        for run in new:
            if run.state == STANDBY:
                self._serve(run)
        if any(run.state == SERVING for run in new):
            for run in old:
                self._retire(run, "its successor serves")
        self._wake()

    def _serve(self, run: SimulatedRun) -> None:
        run.state, run.serving_since = SERVING, self._engine.now
        self._note("serves", pipeline=run.name)
        self._engine.add(run.engine)

    def _retire(self, run: SimulatedRun, reason: str) -> None:
        if run.state == SERVING:
            self._end(run, STOPPED, reason)

    def _fail(self, run: SimulatedRun) -> None:
        if run.live:
            self._end(run, FAILED, "a node is lost")

    def _end(self, run: SimulatedRun, state: str, reason: str) -> None:
        served = run.state == SERVING
        run.state, run.ended = state, self._engine.now
        if served:
            self._note("ended", pipeline=run.name, reason=reason)
            self._engine.remove(run.name, keep_tokens=self._how.migrate)
        self._wake()

    def _hold(self, run: SimulatedRun) -> None:
        """Note that the tensor stores of its GPUs hold its layers."""
        for layers, stage in zip(run.plan.layer_ranges, run.plan.stages, strict=True):
            for rank, gpu in enumerate(stage.gpus):
                self.nodes[stage.node].held[gpu] = Held(stage.tensor_parallel, rank, layers)

    def _holdings(self) -> dict[tuple[str, int], Held]:
        return {
            (node.name, gpu): held
            for node in self.nodes.values()
            if node.present
            for gpu, held in node.held.items()
        }

    def _new_run(self, plan: Pipeline) -> SimulatedRun:
        name = f"p{len(self.runs) + 1}"
        run = SimulatedRun(name, plan, self._build(name, plan))
        self.runs.append(run)
        return run

    def _serving(self) -> list[SimulatedRun]:
        return [run for run in self.runs if run.state == SERVING]

    def _note(self, what: str, **facts: Any) -> None:
        self.notes.append(Note(self._engine.now, what, facts))


def _same_shapes(
    orphans: Sequence[SimulatedRun], gone: set[str], free: list[planner.FreeNode]
) -> tuple[tuple[Pipeline, ...], list[SimulatedRun]]:
    """Each pipeline with other nodes of the same types; and those for which there are none."""
    plans, left = [], []
    for run in orphans:
        spare = [node for node in free if node.name not in run.nodes]
        same = planner.replace_nodes(run.plan, gone, spare)
        if same is None:
            left.append(run)
        else:
            plans.append(same)
            free = planner.without_gpus(free, planner.gpus_of(same))
    return tuple(plans), left
