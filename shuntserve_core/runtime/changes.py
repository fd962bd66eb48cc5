"""Carrying out a change: new pipelines beside old ones, and the switch."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from shuntserve_core.errors import UserError
from shuntserve_core.node.client import AgentLost
from shuntserve_core.runtime.cluster import RunningCluster
from shuntserve_core.runtime.planner import gpus_of
from shuntserve_core.runtime.run import EngineFailed, PipelineRun
from shuntserve_core.runtime.states import PipelineState


async def carry_out(
    cluster: RunningCluster,
    new: Sequence[PipelineRun],
    old: Sequence[PipelineRun],
    *,
    needed: bool,
) -> None:
    """Bring `new` up, beside `old` or after it as the strategy says, and switch over.

    Of a change that is not `needed`, what fails is given up, and `old` goes on.
    """
    try:
        if not cluster.strategy.concurrent:
            await _end_first(cluster, old, new)
        await asyncio.gather(*(_prepare(run) for run in new))
        if not needed and not all(run.state is PipelineState.STANDBY for run in new):
            await _give_up(new, old)
            return
        await _switch(cluster, new, old)
    finally:
        cluster.wake.set()


async def _prepare(run: PipelineRun) -> None:
    try:
        await run.prepare()
    except (EngineFailed, UserError) as error:
        run.fail(str(error))


async def _give_up(new: Sequence[PipelineRun], old: Sequence[PipelineRun]) -> None:
    for run in new:
        run.replaced = True
        if run.live:
            await run.stop("given up")
    for run in old:
        run.replaced = False


async def _end_first(
    cluster: RunningCluster, old: Sequence[PipelineRun], new: Sequence[PipelineRun]
) -> None:
    """Without concurrent initialization: serve to the last, stop, and start from nothing."""
    deadlines = [
        node.deadline
        for run in old
        for node in cluster.nodes.values()
        if node.name in run.node_names and node.deadline is not None
    ]
    if deadlines:
        margin = cluster.config.document.serve.switch_margin
        await asyncio.sleep(max(0.0, min(deadlines) - margin - time.time()))
    await asyncio.gather(*(retire(cluster, run, "its successor is to start") for run in old))
    for run in new:
        for name, gpu in gpus_of(run.plan):
            node = cluster.nodes[name]
            node.held.pop(gpu, None)
            if node.agent is not None and node.present:
                with contextlib.suppress(AgentLost):
                    await node.agent.drop_store(gpu)


async def _switch(
    cluster: RunningCluster, new: Sequence[PipelineRun], old: Sequence[PipelineRun]
) -> None:
    """Take GPUs from those that have them, give them to `new`, and end `old`."""
    for run in new:
        if run.state is PipelineState.STANDBY:
            await _take_over(cluster, run)
    if any(run.state is PipelineState.SERVING for run in new):
        await asyncio.gather(*(retire(cluster, run, "its successor serves") for run in old))
        await _release_weights(cluster)


async def _take_over(cluster: RunningCluster, run: PipelineRun) -> None:
    began = time.monotonic()
    gpus = gpus_of(run.plan)
    sharing = [other for other in cluster.serving() if gpus_of(other.plan) & gpus]
    await asyncio.gather(*(retire(cluster, other, f"replaced by {run.name}") for other in sharing))
    if run.state is not PipelineState.STANDBY:
        return
    try:
        await run.activate()
    except EngineFailed as error:
        run.fail(str(error))
        return
    run.switch_seconds = time.monotonic() - began if sharing else 0.0
    admit(cluster, run)


def admit(cluster: RunningCluster, run: PipelineRun) -> None:
    """Let requests go to a pipeline that serves."""
    if run.link is None:
        return
    cluster.dispatcher.add_pipeline(
        run.name, run.link, run.plan.estimate.throughput_rps, run.capacity
    )
    cluster.note("pipeline serves", pipeline=run.name, switch_seconds=run.switch_seconds)


async def retire(cluster: RunningCluster, run: PipelineRun, reason: str) -> None:
    """Move the requests of a pipeline elsewhere and end its engine."""
    if run.state is not PipelineState.SERVING:
        return
    run.machine.to(PipelineState.DRAINING, reason)
    cluster.dispatcher.drain_pipeline(run.name)
    cluster.dispatcher.migrate(run.name)
    cluster.dispatcher.remove_pipeline(run.name)
    await run.stop(reason)
    cluster.note("pipeline ended", pipeline=run.name, reason=reason)
    cluster.wake.set()


async def _release_weights(cluster: RunningCluster) -> None:
    """Have stores drop layers that no live pipeline needs any more."""
    for node in cluster.nodes.values():
        if node.agent is None or not node.present:
            continue
        for gpu in list(node.held):
            specs = [
                spec
                for run in cluster.runs.values()
                if run.live
                for spec in run.shards_on(node.name, gpu)
            ]
            if specs:
                with contextlib.suppress(AgentLost, UserError):
                    await node.agent.retain(gpu, specs)
