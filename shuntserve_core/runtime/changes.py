"""Carrying out a succession: new pipelines beside old ones, the switch, and the end of the old."""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial

from shuntserve_core.control_plane.policy.capacity import gpus_of
from shuntserve_core.errors import UserError
from shuntserve_core.node.client import AgentLost
from shuntserve_core.runtime.cluster import RunningCluster
from shuntserve_core.runtime.run import EngineFailed, PipelineRun
from shuntserve_core.runtime.states import PipelineState
from shuntserve_core.runtime.succession import Succession
from shuntserve_core.runtime.switching import END, READY, Switch


async def carry_out(cluster: RunningCluster, succession: Succession) -> None:
    """Bring the new pipelines up, beside the old or after them as the strategy says; switch over.

    Returns at once when the succession is abandoned; whoever abandons it stops the new pipelines.
    """
    if not cluster.strategy.concurrent:
        await _end_first(cluster, succession)
    if not succession.abandoned.is_set():
        await asyncio.gather(*(_prepare(cluster, succession, run) for run in succession.new))
    if not succession.abandoned.is_set():
        await _switch(cluster, succession)


async def abandon(cluster: RunningCluster, succession: Succession, reason: str) -> None:
    """Stop the new pipelines; what is old goes on."""
    if not succession.abandoned.is_set():
        succession.abandoned.set()
        cluster.note("given up", start=[run.name for run in succession.new], reason=reason)
        await asyncio.gather(*(run.stop(reason) for run in succession.new))


async def _prepare(cluster: RunningCluster, succession: Succession, run: PipelineRun) -> None:
    try:
        await run.prepare()
    except (EngineFailed, UserError) as error:
        run.fail(str(error))
        if succession.optional:
            await abandon(cluster, succession, f"{run.name} failed: {error}")


async def _end_first(cluster: RunningCluster, succession: Succession) -> None:
    """Without concurrent initialization: serve to the last, stop, and start from nothing."""
    while not succession.abandoned.is_set():
        left = _seconds_left(cluster, succession)
        if left <= 0:
            break
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(succession.abandoned.wait(), min(left, 0.5))
    if succession.abandoned.is_set():
        return
    await asyncio.gather(
        *(retire(cluster, run, "its successor is to start") for run in succession.old)
    )
    for run in succession.new:
        for name, gpu in gpus_of(run.plan):
            node = cluster.nodes[name]
            node.held.pop(gpu, None)
            if node.agent is not None and node.present:
                with contextlib.suppress(AgentLost, UserError):
                    await node.agent.drop_store(gpu)


def _seconds_left(cluster: RunningCluster, succession: Succession) -> float:
    """How long the old pipelines may go on serving."""
    deadlines = [
        node.deadline
        for run in succession.old
        if run.serves
        for node in run.nodes
        if node.deadline is not None
    ]
    margin = cluster.config.document.serve.switch_margin
    return min(deadlines) - margin - time.time() if deadlines else 0.0


async def _switch(cluster: RunningCluster, succession: Succession) -> None:
    """Take GPUs from those that have them, give them to the new pipelines, and end the old."""
    for run in succession.new:
        if run.state is PipelineState.STANDBY:
            await _take_over(cluster, run)
    if succession.served:
        await asyncio.gather(
            *(retire(cluster, run, "its successor serves") for run in succession.old)
        )
        cluster.spawn(_release_weights(cluster))


async def _take_over(cluster: RunningCluster, run: PipelineRun) -> None:
    began = time.monotonic()
    sharing = [
        other
        for other in cluster.runs.values()
        if other is not run and not other.coming and gpus_of(other.plan) & gpus_of(run.plan)
    ]
    interrupted = any(other.serves for other in sharing)
    await asyncio.gather(*(retire(cluster, other, f"replaced by {run.name}") for other in sharing))
    if run.state is not PipelineState.STANDBY:
        return
    gone = time.monotonic()
    if any(run.kv_bytes > other.kv_bytes for other in sharing):
        await _release_weights(cluster)  # KV memory grows into what only the old engine needed
    if interrupted:
        run.switch = Switch(cluster.dispatcher.observer.switched)
        run.switch.took(END, gone - began)
    try:
        await run.activate()
    except EngineFailed as error:
        run.fail(str(error))
        return
    run.switch_seconds = time.monotonic() - began if interrupted else 0.0
    if run.switch is not None:
        run.switch.took(READY, time.monotonic() - gone)
    admit(cluster, run)


def admit(cluster: RunningCluster, run: PipelineRun) -> None:
    """Let requests go to a pipeline that serves."""
    if run.link is None:
        return
    cluster.dispatcher.add_pipeline(
        run.name,
        run.link,
        run.plan.estimate.throughput_rps,
        run.capacity,
        on_first_token=partial(_first_token, cluster, run),
    )
    cluster.note("pipeline serves", pipeline=run.name, switch_seconds=run.switch_seconds)
    cluster.wake.set()


def _first_token(cluster: RunningCluster, run: PipelineRun, seconds: float) -> None:
    if run.switch is not None:
        run.switch.first_token(seconds)
        cluster.note("first token after the switch", pipeline=run.name, seconds=run.switch.seconds)


async def retire(cluster: RunningCluster, run: PipelineRun, reason: str) -> None:
    """Move the requests of a pipeline elsewhere and end its engine; returns when it is gone."""
    if not run.serves:
        await run.gone.wait()
        return
    run.machine.to(PipelineState.DRAINING, reason)
    cluster.note("requests move", pipeline=run.name, reason=reason)
    cluster.dispatcher.migrate(run.name)
    cluster.dispatcher.remove_pipeline(run.name)
    await run.stop(reason)
    cluster.note("pipeline ended", pipeline=run.name, reason=reason)
    cluster.wake.set()


async def _release_weights(cluster: RunningCluster) -> None:
    """Have stores drop layers that no live pipeline needs any more."""
    for node in list(cluster.nodes.values()):
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
