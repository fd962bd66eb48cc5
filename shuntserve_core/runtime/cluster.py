"""What is there: nodes, pipelines, and the account of what happened to them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from typing import Any

from shuntserve_core.config.loader import Config
from shuntserve_core.control_plane.policy.strategy import Strategy
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.launcher import AgentAddress, Launcher
from shuntserve_core.node.client import AgentClient
from shuntserve_core.runtime.dispatcher import Dispatcher
from shuntserve_core.runtime.launches import EngineSettings
from shuntserve_core.runtime.nodes import Node
from shuntserve_core.runtime.run import PipelineRun, launch_of
from shuntserve_core.runtime.states import (
    NODE_TRANSITIONS,
    PIPELINE_TRANSITIONS,
    Machine,
    NodeState,
    PipelineState,
)
from shuntserve_core.runtime.suspects import Cause
from shuntserve_core.types import Pipeline

SILENCE_SECONDS = 8.0
"""After which a node that is gone has been noticed, however it went."""

logger = logging.getLogger(__name__)

_PIPELINE_FAILED = "pipeline failed"
_NODES_FAILED = ("node lost", "node did not come back", "could not be done")
HISTORY = 500
"""Lines of the account that are kept."""


class RunningCluster:
    """State that membership, changes and the manager share.  Lives on one event loop."""

    def __init__(
        self,
        config: Config,
        settings: EngineSettings,
        launcher: Launcher,
        dispatcher: Dispatcher,
        connect: Callable[[AgentAddress], AgentClient],
    ) -> None:
        self.config = config
        self.settings = settings
        self.launcher = launcher
        self.dispatcher = dispatcher
        self.connect = connect
        self.strategy = Strategy.named(config.document.serve.strategy)
        self.nodes: dict[str, Node] = {}
        self.runs: dict[str, PipelineRun] = {}
        self.transitions: Counter[tuple[str, str]] = Counter()
        self.history: deque[dict[str, Any]] = deque(maxlen=HISTORY)
        self.started = time.time()
        self.wake = asyncio.Event()
        """Set by every change of a state, and by whatever else may call for a decision."""
        self.on_note: Callable[[], None] = lambda: None
        """Called after every line of the account: whoever tells people sets it."""
        self.closing = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def note(self, what: str, **facts: Any) -> None:
        """Add a line to the account that `status` shows."""
        self.history.append({"time": time.time(), "what": what, **facts})
        logger.info("%s %s", what, facts)
        self.on_note()

    # Nodes

    def new_node(self, name: str) -> Node:
        """A node that is expected to join."""
        instance = name.rpartition("#")[0]
        offer = next(o for o in self.config.cluster.offers if o.instance.name == instance)
        wake = self._on_transition
        machine = Machine(name, NodeState.JOINING, NODE_TRANSITIONS, self.transitions, wake)
        gpus = offer.instance.gpu_count
        node = Node(name, instance, gpus, offer.price, offer.market, machine)
        self.nodes[name] = node
        return node

    @property
    def cost_per_hour(self) -> float:
        """$ per hour of all nodes that are there."""
        return sum(node.price for node in self.nodes.values() if node.present)

    # Pipelines

    def new_run(self, name: str, plan: Pipeline) -> PipelineRun:
        """A pipeline that is to be brought up."""
        return self._add(PipelineRun(plan, self.nodes, self.settings, self._machine(name)))

    def remembered_run(self, memory: dict[str, Any]) -> PipelineRun | None:
        """A pipeline that an earlier control plane brought up; None if it would differ now."""
        if not self.settings.made(launch_of(memory)):
            return None
        machine = self._machine(str(memory["name"]))
        return self._add(PipelineRun.remember(memory, self.nodes, self.settings, machine))

    def _machine(self, name: str) -> Machine[PipelineState]:
        wake, states = self._on_transition, PIPELINE_TRANSITIONS
        return Machine(name, PipelineState.LOADING, states, self.transitions, wake)

    def _on_transition(self, *_: object) -> None:
        self.wake.set()

    def _add(self, run: PipelineRun) -> PipelineRun:
        run.on_failed = self._failed
        run.on_gone = self.wake.set
        self.runs[run.name] = run
        return run

    def _failed(self, run: PipelineRun, reason: str) -> None:
        """Requests go elsewhere at once; what comes next is the manager's to decide."""
        if self.closing:
            return
        self.note(_PIPELINE_FAILED, pipeline=run.name, reason=reason)
        logger.warning("pipeline %s failed: %s", run.name, reason)
        self.dispatcher.remove_pipeline(run.name, run.cause)
        self.spawn(self._end_failed(run, reason))

    async def _end_failed(self, run: PipelineRun, reason: str) -> None:
        """Stop what is left of a pipeline that failed, and find out whether a node is to blame.

        It is not if all of them answer.  One that does not, or that is lost soon afterwards (a
        machine that shuts down ends engines first), clears the requests that were in flight.
        """
        answered = await run.stop(reason)
        if run.cause is Cause.NODE:
            self.dispatcher.explain(run.name, Cause.NODE)
        elif answered:
            self.dispatcher.explain(run.name, Cause.CRASHED)
        await asyncio.sleep(SILENCE_SECONDS)
        self.dispatcher.explain(run.name, Cause.CRASHED if run.on_firm_ground else Cause.NODE)

    def serving(self) -> list[PipelineRun]:
        """Pipelines that serve."""
        return [run for run in self.runs.values() if run.serves]

    def coming(self) -> list[PipelineRun]:
        """Pipelines on their way to serving."""
        return [run for run in self.runs.values() if run.coming]

    @property
    def waits_for(self) -> str:
        """What must happen before anybody is served, in a line; empty while a pipeline serves."""
        if self.serving():
            return ""
        coming = [
            f"{r.name} ({r.state}) on {', '.join(sorted(r.node_names))}" for r in self.coming()
        ]
        if coming:
            return f"waiting for {'; '.join(coming)}"
        away = [f"{n.name} ({n.machine.state})" for n in self.nodes.values() if not n.usable]
        parts = ["waiting for nodes that hold the model" if away else "waiting for the next try"]
        parts += [f"not usable: {', '.join(away)}"] if away else []
        last = [self._last(_PIPELINE_FAILED), self._last(*_NODES_FAILED)]
        if any(last):
            parts.append(f"last failure: {'; '.join(filter(None, last))}")
        return "; ".join(parts)

    def _last(self, *whats: str) -> str:
        """What failed last of these, and the first line of why; empty where nothing did."""
        for line in reversed(self.history):
            if line["what"] in whats:
                reason = str(line["reason"]).partition("\n")[0]
                who = line.get("pipeline") or line.get("node")
                return f"{who}: {reason}" if who else reason
        return ""

    # Work in the background

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something whose failure must be seen, but not waited for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, OSError | UserError):  # a full disk, a machine that is away
            self.note("could not be done", reason=str(error))
            logger.error("could not be done: %s", error)
        elif error is not None:
            logger.error("a task of the cluster failed", exc_info=error)

    async def cancel_work(self) -> None:
        """Give up everything in the background."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            "model": self.settings.model.name,
            "engine": self.settings.engine_name,
            "strategy": self.strategy.name,
            "started": self.started,
            "waits_for": self.waits_for,
            "cost_per_hour": self.cost_per_hour,
            "throughput_rps": sum(r.plan.estimate.throughput_rps for r in self.serving()),
            "nodes": [node.describe() for node in self.nodes.values()],
            "pipelines": [run.describe() for run in self.runs.values()],
            "transitions": {f"{a}->{b}": n for (a, b), n in sorted(self.transitions.items())},
            "history": list(self.history),
        }
