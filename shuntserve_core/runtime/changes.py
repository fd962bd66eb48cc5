"""Carrying out what was decided about pipelines: their start, the switch, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from functools import partial

from shuntserve_core.control_plane.policy.capacity import gpus_of
from shuntserve_core.errors import UserError
from shuntserve_core.node.client import AgentLost
from shuntserve_core.runtime.cluster import RunningCluster
from shuntserve_core.runtime.run import EngineFailed, PipelineRun
from shuntserve_core.runtime.states import PipelineState
from shuntserve_core.runtime.switching import END, READY, Switch

logger = logging.getLogger(__name__)


async def prepare(cluster: RunningCluster, run: PipelineRun, *, afresh: bool) -> None:
    """Have a pipeline stand by; `afresh` without weights that its tensor stores held.

    Whatever goes wrong, it has failed then and nobody waits for it.
    """
    try:
        if afresh:
            await _drop_stores(cluster, run)
        await run.prepare()
    except (EngineFailed, UserError) as error:
        run.fail(str(error))
    except Exception as error:
        logger.exception("the start of %s failed", run.name)
        run.fail(f"{type(error).__name__}: {error}")


async def _drop_stores(cluster: RunningCluster, run: PipelineRun) -> None:
    for name, gpu in gpus_of(run.plan):
        node = cluster.nodes[name]
        node.held.pop(gpu, None)
        if node.agent is not None and node.present:
            with contextlib.suppress(AgentLost, UserError):
                await node.agent.drop_store(gpu)


async def switch(
    cluster: RunningCluster, run: PipelineRun, others: Sequence[PipelineRun], *, release_first: bool
) -> None:
    """Take GPUs from the others that have them, and have a pipeline that stands by serve.

    `release_first`: its KV memory grows into what only the others' weights needed.
    """
    began = time.monotonic()
    interrupted = any(other.serves for other in others)
    for other in others:
        retire(cluster, other, f"replaced by {run.name}")
    await asyncio.gather(*(other.gone.wait() for other in others))
    gone = time.monotonic()
    if release_first:
        await release_weights(cluster)
    if run.state is not PipelineState.STANDBY:
        return
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


def _first_token(cluster: RunningCluster, run: PipelineRun, seconds: float) -> None:
    if run.switch is not None:
        run.switch.first_token(seconds)
        cluster.note("first token after the switch", pipeline=run.name, seconds=run.switch.seconds)


def retire(cluster: RunningCluster, run: PipelineRun, reason: str) -> None:
    """Move the requests of a pipeline that serves elsewhere and end its engine."""
    if not run.serves:
        return
    run.machine.to(PipelineState.DRAINING, reason)
    cluster.note("requests move", pipeline=run.name, reason=reason)
    cluster.dispatcher.migrate(run.name)
    cluster.dispatcher.remove_pipeline(run.name)
    cluster.spawn(_end(cluster, run, reason))


async def _end(cluster: RunningCluster, run: PipelineRun, reason: str) -> None:
    await run.stop(reason)
    cluster.note("pipeline ended", pipeline=run.name, reason=reason)


async def release_weights(cluster: RunningCluster) -> None:
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
