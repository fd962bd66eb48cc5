"""How long things take when nodes come and go, and what is done about it."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen
from attrs.validators import ge, gt, in_

from shuntserve_core.control_plane.policy.capacity import Held
from shuntserve_core.control_plane.policy.strategy import Strategy
from shuntserve_core.types import ModelSpec, Pipeline, dtype_bytes

ON_DEMAND = "on-demand"
STRATEGIES = ("shuntserve", "concurrent-init", "migration", "none", ON_DEMAND)


@frozen
class Recovery:
    """Options of a run with interruptions; seconds unless said otherwise."""

    strategy: str = field(default="shuntserve", validator=in_(STRATEGIES))
    """As in `[serve]`; `on-demand` has no interruptions, and pays on-demand prices."""
    boot_seconds: float = field(default=97.0, validator=ge(0))
    """From asking for an instance until it can be used: the mean of Linux instances on EC2 in Mao
    and Humphrey, "A performance study on the VM startup time in the cloud", IEEE CLOUD 2012."""
    weight_bandwidth: float = field(default=0.4e9, validator=gt(0))
    """Bytes per second that each GPU's tensor store reads.  Published with ShuntServe: 42 to 71 s
    on g6e.xlarge, which holds 22 to 24 GB of the published stages.  (18 to 26 s on g6.12xlarge,
    with 6 GB on each of four GPUs, would be 0.27e9.)"""
    start_seconds: float = field(default=66.0, validator=ge(0))
    """From loaded weights until the engine stands by.  Published: 56 to 76 s for the API server."""
    switch_seconds: float = field(default=3.0, validator=ge(0))
    """In which GPUs serve nobody when one engine hands them to the next.  Published: "the last
    seconds"; assumed."""
    default_notice: float = field(default=120.0, validator=ge(0))
    """Of a notice without a deadline: what AWS documents."""
    detection_seconds: float = field(default=1.6, validator=ge(0))
    """Until a node that went without a notice is detected: measured with Ray's health checks at
    0.5 s."""
    replan: bool = True
    """Whether pipelines are placed anew, with other shapes, when nodes of the same type are short
    or come back.  Without it, a pipeline waits for such nodes."""

    @property
    def how(self) -> Strategy:
        """What is done at an interruption; on-demand has none."""
        return Strategy.named("shuntserve" if self.strategy == ON_DEMAND else self.strategy)


def load_seconds(
    plan: Pipeline,
    model: ModelSpec,
    held: Mapping[tuple[str, int], Held],
    bandwidth: float,
) -> float:
    """Seconds until every GPU of a pipeline holds its layers, all reading at the same time."""
    slowest = 0.0
    last = len(plan.stages) - 1
    for index, (layers, stage) in enumerate(zip(plan.layer_ranges, plan.stages, strict=True)):
        tables = int(index == 0) + int(index == last)
        for rank, gpu in enumerate(stage.gpus):
            missing = set(layers)
            there = held.get((stage.node, gpu))
            table_bytes = tables * model.vocab * model.hidden * dtype_bytes(model.dtype)
            if there and (there.tensor_parallel, there.rank) == (stage.tensor_parallel, rank):
                common = range(
                    max(layers.start, there.layers.start), min(layers.stop, there.layers.stop)
                )
                missing -= set(common)
                table_bytes *= (
                    there.layers.start != layers.start or there.layers.stop != layers.stop
                )
            weights = sum(model.bytes_of_layers(range(i, i + 1)) for i in missing)
            nbytes = (weights + table_bytes) / stage.tensor_parallel
            slowest = max(slowest, nbytes / bandwidth)
    return slowest
