"""What the processes of an engine are told."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from shuntserve_core.interfaces.engine import Engine, EngineLaunch, RankLaunch
from shuntserve_core.runtime.nodes import Node
from shuntserve_core.types import ModelSpec, Pipeline


@frozen
class EngineSettings:
    """What all engines of a cluster have in common."""

    engine: Engine
    engine_name: str
    model: ModelSpec
    model_dir: str
    max_length: int
    max_batch: int | None
    kv_bytes: int | None
    store_url: str = ""
    store_model: str = ""
    start_seconds: float = 600.0
    """How long an engine may take to start once its weights are loaded."""

    def batch_of(self, plan: Pipeline) -> int:
        """Requests that a pipeline runs at once."""
        return min(plan.estimate.batch, self.max_batch or plan.estimate.batch)

    def kv_bytes_of(self, plan: Pipeline) -> int:
        """KV memory for the largest rank: its share of the layers, for every block of the batch."""
        if self.kv_bytes is not None:
            return self.kv_bytes
        per_token = max(
            stage.layers
            * self.model.kv_bytes_per_token
            / min(stage.tensor_parallel, self.model.kv_heads)
            for stage in plan.stages
        )
        return int(per_token * 16 * plan.estimate.kv_blocks)

    def made(self, launch: EngineLaunch) -> bool:
        """Whether an engine that was launched some time ago is what would be launched now."""
        return (
            launch.model == self.model
            and launch.max_length == self.max_length
            and (launch.weights, launch.weights_model) == (self.store_url, self.store_model)
        )


def engine_launch(
    engine_id: str,
    token: str,
    plan: Pipeline,
    nodes: Mapping[str, Node],
    settings: EngineSettings,
    rendezvous: str,
) -> EngineLaunch:
    """Everything that the processes of a pipeline must know; its nodes have agents."""
    ranks: list[RankLaunch] = []
    for number, stage in enumerate(plan.stages):
        agent = nodes[stage.node].agent
        assert agent is not None
        for rank, gpu in enumerate(stage.gpus):
            socket = agent.store_sockets.get(gpu, "")
            ranks.append(RankLaunch(stage.node, agent.address.host, gpu, number, rank, socket))
    estimate = plan.estimate
    return EngineLaunch(
        engine_id=engine_id,
        model=settings.model,
        model_dir=settings.model_dir,
        weights=settings.store_url,
        weights_model=settings.store_model,
        layers=tuple((layers.start, layers.stop) for layers in plan.layer_ranges),
        tensor_parallel=tuple(stage.tensor_parallel for stage in plan.stages),
        ranks=tuple(ranks),
        rendezvous=rendezvous,
        link_token=token,
        max_batch=settings.batch_of(plan),
        max_length=settings.max_length,
        kv_bytes=settings.kv_bytes_of(plan),
        stage_seconds={
            "ttft": estimate.ttft,
            "tpot": estimate.tpot,
            "throughput_rps": estimate.throughput_rps,
        },
    )
