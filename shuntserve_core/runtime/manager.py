"""The cluster manager: keeps the best pipelines running on whatever nodes there are.

Everything that happens (a notice, a node's silence, a worker's end, capacity that comes back) only
changes states and wakes the manager up.  It makes a view of all states, asks `decide` what to do
about them, and has that done.  So it does not matter in which order things happen, how often they
are told, or whether a notice came at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence

from shuntserve_core.control_plane.policy import actions as act
from shuntserve_core.control_plane.policy import planner
from shuntserve_core.control_plane.policy.backoff import FIRST_SECONDS
from shuntserve_core.control_plane.policy.capacity import nodes_of
from shuntserve_core.control_plane.policy.decide import decide
from shuntserve_core.control_plane.policy.search import Found, Question
from shuntserve_core.control_plane.policy.view import Memory, Missing, Settings, View
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.launcher import AgentAddress
from shuntserve_core.runtime.changes import prepare, release_weights, retire, switch
from shuntserve_core.runtime.cluster import RunningCluster
from shuntserve_core.runtime.membership import Membership
from shuntserve_core.runtime.states import PipelineState
from shuntserve_core.types import Pipeline

logger = logging.getLogger(__name__)


class Manager:
    """Waits for changes, has it decided what to do about them, and has that done."""

    def __init__(self, cluster: RunningCluster) -> None:
        self.cluster = cluster
        self.membership = Membership(cluster)
        self.memory = Memory()
        """What was decided, as far as later decisions depend on it."""
        margin = cluster.config.document.serve.switch_margin
        self._settings = Settings(cluster.strategy, margin)
        self._searching: Question | None = None
        self._found: Found | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._tried = asyncio.Event()
        """Set when nothing of the first placement is left to be tried."""
        self._loop: asyncio.Task[None] | None = None

    async def start(self, plans: Sequence[Pipeline], spares: Sequence[str]) -> None:
        """Launch the nodes of a placement and its spares, and bring its pipelines up.

        Returns when they serve, or failed for the first time.  Raises `UserError` if no node
        comes up.
        """
        names = sorted({name for plan in plans for name in nodes_of(plan)} | set(spares))
        launches = [self.membership.launch(name) for name in names]
        outcomes = await asyncio.gather(*launches, return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for error in errors:
            if len(errors) == len(names) or not isinstance(error, UserError):
                raise error
        usable = frozenset(name for name, node in self.cluster.nodes.items() if node.usable)
        self.memory = Memory(missing=tuple(Missing("", plan) for plan in plans), usable=usable)
        self._begin()
        await self._tried.wait()

    async def adopt(self, addresses: Sequence[AgentAddress]) -> None:
        """Go on with the nodes and engines that an earlier control plane left."""
        await self.membership.adopt(addresses)
        unfit = {run.name for run in self.cluster.runs.values() if run.serving_since is None}
        self.memory = Memory(ended=frozenset(unfit))  # what they were to replace is not known
        self._begin()

    def _begin(self) -> None:
        self.cluster.wake.set()
        self._loop = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End every engine and every node."""
        cluster = self.cluster
        cluster.closing = True
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        self._wake_at(None)
        await cluster.cancel_work()
        for run in cluster.runs.values():
            run.close_link()
        for node in cluster.nodes.values():
            if node.agent is not None:
                await node.agent.close()
        await asyncio.gather(*(cluster.launcher.terminate(name) for name in cluster.nodes))

    # Deciding

    async def _run(self) -> None:
        while True:
            await self.cluster.wake.wait()
            self.cluster.wake.clear()
            try:
                self._decide()
            except Exception:
                logger.exception("deciding failed")
                self._wake_at(time.monotonic() + FIRST_SECONDS)

    def _decide(self) -> None:
        decision = decide(self._view())
        self.memory, self._found = decision.memory, None
        self._wake_at(None)
        for action in decision.actions:
            self._carry_out(action)
        replacements = self.memory.replacements
        left = [*self.memory.missing, *(one for r in replacements for one in r.fills)]
        if all(one.name for one in left):
            self._tried.set()

    def _view(self) -> View:
        """Everything that a decision depends on, on the monotonic clock."""
        cluster, now = self.cluster, time.monotonic()
        ahead = now - time.time()
        return View(
            now,
            {name: node.view(ahead) for name, node in cluster.nodes.items()},
            {name: run.view(ahead) for name, run in cluster.runs.items()},
            self._settings,
            self.memory,
            self._searching,
            self._found,
        )

    # Having it done

    def _carry_out(self, action: act.Action) -> None:
        match action:
            case act.Join() | act.Notice() | act.Withdraw() | act.EndNode():
                self.membership.carry_out(action)
            case act.Search(question):
                self._searching = question
                self.cluster.spawn(self._search(question))
            case act.WakeAt(at):
                self._wake_at(at)
            case act.Report(what, facts):
                self.cluster.note(what, **facts)
            case act.Release():
                self.cluster.spawn(release_weights(self.cluster))
            case _:
                self._change_pipeline(action)

    def _change_pipeline(self, action: act.PipelineAction) -> None:
        cluster, runs = self.cluster, self.cluster.runs
        match action:
            case act.Create(name, plan):
                cluster.new_run(name, plan)
            case act.Start(name, afresh):
                cluster.spawn(prepare(cluster, runs[name], afresh=afresh))
            case act.Switch(name, after, release_first):
                others = [runs[other] for other in after]
                switching = switch(cluster, runs[name], others, release_first=release_first)
                cluster.spawn(switching)
            case act.Retire(name, reason):
                retire(cluster, runs[name], reason)
            case act.Fail(name, reason):
                runs[name].fail(reason)
            case act.Stop(name, reason):
                runs[name].machine.to(PipelineState.STOPPED, reason)
                cluster.spawn(runs[name].stop(reason))
            case act.Forget(name):
                del runs[name]

    async def _search(self, question: Question) -> None:
        """Without holding anything up: what is found is looked at by the next decision."""
        try:
            config = self.cluster.config
            self._found = await asyncio.to_thread(planner.answer, config, question)
        except Exception:
            logger.exception("the search for a placement failed")
            await asyncio.sleep(FIRST_SECONDS)
        finally:
            self._searching = None
            self.cluster.wake.set()

    def _wake_at(self, at: float | None) -> None:
        """Look again at this time; None: only when something happens."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if at is not None:
            left = max(at - time.monotonic(), 0.0)
            self._alarm = asyncio.get_running_loop().call_later(left, self.cluster.wake.set)
