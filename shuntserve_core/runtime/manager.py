"""The cluster manager: keeps the best pipelines running on whatever nodes there are.

Everything that happens (a notice, a node's silence, a worker's end, capacity that comes back) only
changes states and wakes the manager up; what to do about it is decided in one place, `_reconcile`,
by looking at the states alone.  So it does not matter in which order things happen, how often they
are told, or whether a notice came at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Sequence

from shuntserve_core.interfaces.launcher import AgentAddress
from shuntserve_core.runtime import planner
from shuntserve_core.runtime.changes import carry_out
from shuntserve_core.runtime.cluster import RunningCluster
from shuntserve_core.runtime.membership import Membership
from shuntserve_core.runtime.run import PipelineRun
from shuntserve_core.runtime.states import PipelineState
from shuntserve_core.types import Pipeline

logger = logging.getLogger(__name__)

RETRY_SECONDS = 2.0
"""Wait before a failed start is tried again; doubled each time, up to `RETRY_MOST`."""
RETRY_MOST = 60.0


class Manager:
    """Decides what runs where."""

    def __init__(self, cluster: RunningCluster) -> None:
        self.cluster = cluster
        self.membership = Membership(cluster)
        self._failures = 0
        self._loop: asyncio.Task[None] | None = None

    async def start(self, plans: Sequence[Pipeline], spares: Sequence[str]) -> None:
        """Launch the nodes of a placement and its spares, and bring its pipelines up.

        Returns when they serve, or failed for the first time.  Raises `UserError`.
        """
        names = sorted({name for plan in plans for name in planner.nodes_of(plan)} | set(spares))
        await asyncio.gather(*(self.membership.launch(name) for name in names))
        new = [self.cluster.new_run(plan) for plan in plans]
        self._loop = asyncio.create_task(self._run())
        await carry_out(self.cluster, new, [], needed=True)

    async def adopt(self, addresses: Sequence[AgentAddress]) -> None:
        """Go on with the nodes and engines that an earlier control plane left."""
        self._loop = asyncio.create_task(self._run())
        await self.membership.adopt(addresses)

    async def close(self) -> None:
        """End every engine and every node."""
        cluster = self.cluster
        await cluster.cancel_work()
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        for node in cluster.nodes.values():
            if node.agent is not None:
                await node.agent.close()
        await asyncio.gather(*(cluster.launcher.terminate(name) for name in cluster.nodes))

    async def _run(self) -> None:
        while True:
            await self.cluster.wake.wait()
            self.cluster.wake.clear()
            try:
                await self._reconcile()
            except Exception:
                logger.exception("deciding failed")
                self.cluster.wake_later(RETRY_SECONDS)

    async def _reconcile(self) -> None:
        self._mark()
        orphans = self._orphans()
        if orphans:
            await self._replace(orphans)
        elif self.cluster.capacity_came and not self.cluster.coming():
            await self._improve()
        for name, run in list(self.cluster.runs.items()):
            if run.state is PipelineState.STOPPED and run.replaced:
                del self.cluster.runs[name]

    def _mark(self) -> None:
        """Find the pipelines that cannot stay as they are."""
        leaving = {node.name for node in self.cluster.nodes.values() if not node.usable}
        for run in self.cluster.coming():
            if run.node_names & leaving:
                run.fail(f"{', '.join(sorted(run.node_names & leaving))} will not stay")
            elif run.doomed:
                run.fail(run.doomed)
        for run in self.cluster.serving():
            run.losing = ", ".join(sorted(run.node_names & leaving))

    def _orphans(self) -> list[PipelineRun]:
        """Pipelines that need a successor and have none under way."""
        found, now = [], time.monotonic()
        for run in self.cluster.runs.values():
            ended = run.state in (PipelineState.FAILED, PipelineState.STOPPED)
            leaving = run.state is PipelineState.SERVING and (run.doomed or run.losing)
            if run.replaced or not (ended or leaving):
                continue
            if ended and run.serving_since is None and run.retry_at is None:
                run.retry_at = now + self._pause(run)
            if run.retry_at is not None and run.retry_at > now:
                self.cluster.wake_later(run.retry_at - now)
            else:
                found.append(run)
        return found

    def _pause(self, run: PipelineRun) -> float:
        """How long to wait after a start that failed although its nodes were all well."""
        if not all(self.cluster.nodes[name].usable for name in run.node_names):
            return 0.0
        self._failures += 1
        return min(RETRY_SECONDS * 2.0 ** (self._failures - 1), RETRY_MOST)

    async def _replace(self, orphans: list[PipelineRun]) -> None:
        cluster = self.cluster
        staying = [run for run in cluster.runs.values() if run.live and run not in orphans]
        plans = await asyncio.to_thread(
            planner.successors,
            cluster.config,
            {run.name: run.plan for run in orphans},
            {name for name, node in cluster.nodes.items() if not node.usable},
            cluster.free(staying),
            cluster.holdings,
        )
        if not plans:
            cluster.note("no replacement fits", pipelines=[run.name for run in orphans])
            for run in orphans:
                # Whatever still serves is looked at again at the next event; what is gone is
                # forgotten, and returning capacity is placed anew.
                run.replaced = not run.live
            return
        for run in orphans:
            run.replaced = True
        self._begin("replacement", plans, orphans, needed=True)

    async def _improve(self) -> None:
        cluster = self.cluster
        cluster.capacity_came = False
        serving = {run.name: run for run in cluster.serving()}
        change = await asyncio.to_thread(
            planner.improvement,
            cluster.config,
            {name: run.plan for name, run in serving.items()},
            self._without_spares([node.free for node in cluster.nodes.values() if node.usable]),
            cluster.holdings,
            cluster.config.document.serve.improve,
        )
        if change is None:
            return
        old = [serving[name] for name in change.end]
        for run in old:
            run.replaced = True
        self._begin("better placement", change.start, old, needed=not serving)

    def _begin(
        self, why: str, plans: Sequence[Pipeline], old: list[PipelineRun], *, needed: bool
    ) -> None:
        new = [self.cluster.new_run(plan) for plan in plans]
        self.cluster.note(
            why,
            start={run.name: sorted(run.node_names) for run in new},
            end=[run.name for run in old],
        )
        self.cluster.spawn(self._carry_out(new, old, needed=needed))

    async def _carry_out(
        self, new: list[PipelineRun], old: list[PipelineRun], *, needed: bool
    ) -> None:
        await carry_out(self.cluster, new, old, needed=needed)
        if all(run.state is PipelineState.SERVING for run in new):
            self._failures = 0

    def _without_spares(self, nodes: Sequence[planner.FreeNode]) -> list[planner.FreeNode]:
        """All but as many nodes of each type as are to be kept as spares, idle ones first."""
        busy = {name for run in self.cluster.runs.values() if run.live for name in run.node_names}
        spares = Counter(dict(self.cluster.config.document.serve.spares))
        kept = []
        for node in sorted(nodes, key=lambda node: (node.name in busy, node.name)):
            if spares[node.instance] > 0:
                spares[node.instance] -= 1
            else:
                kept.append(node)
        return kept
