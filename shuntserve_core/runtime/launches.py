"""What the processes of an engine are told."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from shuntserve_core.interfaces.engine import Engine, EngineLaunch, RankLaunch, kv_shares
from shuntserve_core.runtime.nodes import Node
from shuntserve_core.types import ModelSpec, Pipeline
from shuntserve_core.types.dtypes import dtype_bytes

_BLOCK = 16
"""Tokens of an estimate's block."""
_SPARE_TOKENS = 64


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

    def kv_bytes_of(self, plan: Pipeline, *, on_gpus: bool) -> int:
        """KV memory for the rank that needs most of it: for every block of the batch, and at least
        for one request of the greatest length.

        Never more than any GPU has left beside this plan's weights and what engines need for
        themselves, as far as the estimate says: a successor may need more than its predecessor.
        What was set by hand is cut down on real GPUs only; others are what a configuration says.
        """
        layers = [(span.start, span.stop) for span in plan.layer_ranges]
        degrees = [stage.tensor_parallel for stage in plan.stages]
        shares = kv_shares(self.model, layers, degrees)
        token = 2 * self.model.head_dim * dtype_bytes(self.model.kv_dtype) * max(shares)
        # vLLM keeps a block for itself, and blocks may be larger than the estimator's.
        tokens = max(_BLOCK * plan.estimate.kv_blocks, self.max_length + _SPARE_TOKENS)
        wanted = int(token * tokens) if self.kv_bytes is None else self.kv_bytes
        rooms = [
            int(part.kv_room_bytes * max(shares) / share)
            for part, share in zip(plan.estimate.stages, shares, strict=False)
            if part.kv_room_bytes
        ]
        bound = self.kv_bytes is None or on_gpus
        return min([wanted, *rooms]) if bound else wanted

    def made(self, launch: EngineLaunch) -> bool:
        """Whether an engine that was launched some time ago is what would be launched now."""
        return (
            launch.model == self.model
            and launch.max_length == self.max_length
            and (launch.weights, launch.weights_model) == (self.store_url, self.store_model)
        )


def on_gpus(plan: Pipeline, nodes: Mapping[str, Node]) -> bool:
    """Whether any stage is on memory of a GPU, as its node says."""
    return any(
        agent.devices.get(gpu, "cpu") != "cpu"
        for stage in plan.stages
        if (agent := nodes[stage.node].agent) is not None
        for gpu in stage.gpus
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
            device = agent.devices.get(gpu, "cpu")
            host = agent.address.host
            ranks.append(RankLaunch(stage.node, host, gpu, number, rank, socket, device))
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
        kv_bytes=settings.kv_bytes_of(plan, on_gpus=on_gpus(plan, nodes)),
        working_bytes=tuple(int(part.working_bytes) for part in estimate.stages),
        stage_seconds={
            "ttft": estimate.ttft,
            "tpot": estimate.tpot,
            "throughput_rps": estimate.throughput_rps,
        },
    )
