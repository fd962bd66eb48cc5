"""The cluster manager: keeps the best pipelines running on whatever nodes there are.

Everything that happens (a notice, a node's silence, a worker's end, capacity that comes back) only
changes states and wakes the manager up; what to do about it is decided in one place, `_decide`, by
looking at the states alone.  So it does not matter in which order things happen, how often they are
told, or whether a notice came at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence

from shuntserve_core.control_plane.policy import planner
from shuntserve_core.control_plane.policy.backoff import FIRST_SECONDS, Backoff
from shuntserve_core.control_plane.policy.capacity import nodes_of, shape_of
from shuntserve_core.control_plane.policy.spares import keep_shapes
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.launcher import AgentAddress
from shuntserve_core.runtime.changes import abandon, carry_out, retire
from shuntserve_core.runtime.cluster import RunningCluster
from shuntserve_core.runtime.membership import Membership
from shuntserve_core.runtime.run import PipelineRun
from shuntserve_core.runtime.states import PipelineState
from shuntserve_core.runtime.succession import Succession, Vacancy
from shuntserve_core.types import Pipeline

logger = logging.getLogger(__name__)


class Manager:
    """Decides what runs where."""

    def __init__(self, cluster: RunningCluster) -> None:
        self.cluster = cluster
        self.membership = Membership(cluster)
        self._under_way: list[Succession] = []
        self._vacancies: list[Vacancy] = []
        self._improving = Backoff()
        self._unanswered: tuple[object, ...] = ()
        """The last question that the planner had no answer to."""
        self._loop: asyncio.Task[None] | None = None
        cluster.on_vacancy = self._on_failed

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
        first = [self._begin("first placement", [plan], [], [Vacancy("", plan)]) for plan in plans]
        self._loop = asyncio.create_task(self._run())
        if first:
            await asyncio.wait(first)

    async def adopt(self, addresses: Sequence[AgentAddress]) -> None:
        """Go on with the nodes and engines that an earlier control plane left."""
        await self.membership.adopt(addresses)
        self._loop = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End every engine and every node."""
        cluster = self.cluster
        cluster.closing = True
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        await cluster.cancel_work()
        for run in cluster.runs.values():
            run.let_go()
        for node in cluster.nodes.values():
            if node.agent is not None:
                await node.agent.close()
        await asyncio.gather(*(cluster.launcher.terminate(name) for name in cluster.nodes))

    async def _run(self) -> None:
        while True:
            await self.cluster.wake.wait()
            self.cluster.wake.clear()
            try:
                await self._decide()
            except Exception:
                logger.exception("deciding failed")
                self.cluster.wake_later(FIRST_SECONDS)

    # Deciding

    async def _decide(self) -> None:
        self._look_after_runs()
        for succession in self._under_way:
            if succession.pointless:
                why = "what it was to replace can stay"
                self.cluster.spawn(abandon(self.cluster, succession, why))
        orphans, vacancies = self._orphans(), self._due_vacancies()
        question = self._question(orphans, vacancies)
        if (orphans or vacancies) and question != self._unanswered:
            if not await self._replace(orphans, vacancies):
                self._unanswered = self._question(orphans, [])
                self.cluster.capacity_came = True  # a placement of everything may do better
                self.cluster.wake.set()
        elif self.cluster.capacity_came and not (self._under_way or self._vacancies):
            await self._improve()

    def _look_after_runs(self) -> None:
        """Fail what comes up in vain, take requests off nodes that go now, forget what is over."""
        margin = self.cluster.config.document.serve.switch_margin
        for run in self.cluster.coming():
            # One that activates has the GPUs already: serving for a while is better than not.
            if run.leaving and run.state is not PipelineState.ACTIVATING:
                run.fail(run.leaving)
        for run in self.cluster.serving():
            if run.due(margin):
                self.cluster.spawn(retire(self.cluster, run, run.leaving))
        for name, run in list(self.cluster.runs.items()):
            if not run.live and run.gone.is_set() and self._answers_for(run) is None:
                del self.cluster.runs[name]

    def _answers_for(self, run: PipelineRun) -> Succession | None:
        return next((s for s in self._under_way if s.concerns(run)), None)

    def _orphans(self) -> list[PipelineRun]:
        """Pipelines that serve, cannot stay, and have no successor under way."""
        return [
            run
            for run in self.cluster.serving()
            if run.leaving and self._answers_for(run) is None and self._is_time(run.retry)
        ]

    def _due_vacancies(self) -> list[Vacancy]:
        return [vacancy for vacancy in self._vacancies if self._is_time(vacancy.retry)]

    def _is_time(self, retry: Backoff) -> bool:
        left = retry.not_before - time.monotonic()
        if left > 0:
            self.cluster.wake_later(left)
        return left <= 0

    def _question(
        self, orphans: Sequence[PipelineRun], vacancies: Sequence[Vacancy]
    ) -> tuple[object, ...]:
        names = [run.name for run in orphans], [vacancy.name for vacancy in vacancies]
        return (*names, tuple(self.cluster.free(self._staying(orphans))))

    def _staying(self, orphans: Sequence[PipelineRun]) -> list[PipelineRun]:
        return [run for run in self.cluster.runs.values() if run.live and run not in orphans]

    async def _replace(self, orphans: list[PipelineRun], vacancies: list[Vacancy]) -> bool:
        """Find places for what goes or is gone; whether there are any."""
        cluster = self.cluster
        names = [*(vacancy.name for vacancy in vacancies), *(run.name for run in orphans)]
        wanted = [*(vacancy.plan for vacancy in vacancies), *(run.plan for run in orphans)]
        usable = {name for name, node in cluster.nodes.items() if node.usable}
        free = cluster.free(self._staying(orphans))
        plans = [plan for plan in keep_shapes(wanted, usable, free) if plan is not None]
        if len(plans) < len(wanted):
            plans = list(
                await asyncio.to_thread(planner.place_on, cluster.config, free, cluster.holdings)
            )
        # What no longer fits is forgotten: returning capacity is placed anew.
        self._vacancies = [v for v in self._vacancies if v not in vacancies]
        if not plans:
            cluster.note("no replacement fits", pipelines=names)
            return False
        shapes = [shape_of(plan) for plan in plans]
        if shapes == [shape_of(plan) for plan in wanted]:
            for plan, vacancy in zip(plans, vacancies, strict=False):
                self._begin("replacement", [plan], [], [vacancy])
            for plan, run in zip(plans[len(vacancies) :], orphans, strict=True):
                self._begin("replacement", [plan], [run], [])
        else:
            self._begin("replacement of another shape", plans, orphans, vacancies)
            cluster.capacity_came = True  # all together may now be placed better still
        return True

    async def _improve(self) -> None:
        cluster = self.cluster
        if not self._is_time(self._improving):
            return
        cluster.capacity_came = False
        serving = {run.name: run for run in cluster.serving() if not run.leaving}
        change = await asyncio.to_thread(
            planner.better_placement,
            cluster.config,
            {name: run.plan for name, run in serving.items()},
            [node.free for node in cluster.nodes.values() if node.usable],
            {name for run in cluster.runs.values() if run.live for name in run.node_names},
            cluster.holdings,
        )
        if change is not None:
            old = [serving[name] for name in change.end]
            self._begin("better placement", change.start, old, [], optional=bool(serving))

    # Having it done

    def _begin(
        self,
        why: str,
        plans: Sequence[Pipeline],
        old: Sequence[PipelineRun],
        fills: Sequence[Vacancy],
        *,
        optional: bool = False,
    ) -> asyncio.Task[None]:
        new = tuple(self.cluster.new_run(plan) for plan in plans)
        succession = Succession(why, new, tuple(old), tuple(fills), optional)
        self.cluster.note(
            why,
            start={run.name: sorted(run.node_names) for run in new},
            end=[*(vacancy.name for vacancy in fills if vacancy.name), *(run.name for run in old)],
        )
        self._under_way.append(succession)
        self._unanswered = ()
        return self.cluster.spawn(self._see_through(succession))

    async def _see_through(self, succession: Succession) -> None:
        try:
            await carry_out(self.cluster, succession)
        finally:
            now = time.monotonic()
            self._under_way.remove(succession)
            self._vacancies += succession.vacated(now)
            if succession.served:
                self._improving = Backoff()
            else:
                self._improving = self._improving.after_failure(now)
                self.cluster.capacity_came = True
            self.cluster.wake.set()

    def _on_failed(self, run: PipelineRun) -> None:
        if self._answers_for(run) is None:
            self._vacancies.append(Vacancy.left_by(run, time.monotonic()))
