"""Stages, pipelines and placements: what an optimizer returns and `serve` carries out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from attrs import field, frozen
from attrs.validators import ge

from shuntserve_core.types.estimate import Estimate


class StageKind(NamedTuple):
    """What a stage runs on, without saying which layers."""

    instance: str
    """Name of the instance type."""
    tensor_parallel: int
    """GPUs of that instance that the stage uses."""


@frozen
class Stage:
    """Consecutive layers on (part of) one instance."""

    instance: str
    """Name of the instance type."""
    tensor_parallel: int = field(validator=ge(1))
    """GPUs that share each layer."""
    layers: int = field(validator=ge(1))
    """How many consecutive layers."""
    node: str = ""
    """Which of the instances: `<type>#<number>`, empty until assigned."""
    gpus: tuple[int, ...] = ()
    """Which GPUs of the node, empty until assigned."""

    @property
    def kind(self) -> StageKind:
        """The hardware of the stage."""
        return StageKind(self.instance, self.tensor_parallel)


@frozen
class Pipeline:
    """Stages that hold the whole model, in order: one replica."""

    stages: tuple[Stage, ...]
    estimate: Estimate

    @property
    def layer_ranges(self) -> tuple[range, ...]:
        """The layers of each stage."""
        ranges, start = [], 0
        for stage in self.stages:
            ranges.append(range(start, start + stage.layers))
            start += stage.layers
        return tuple(ranges)


@frozen
class Placement:
    """The pipelines that an optimizer chose, and what it left unused."""

    pipelines: tuple[Pipeline, ...]
    unused: Mapping[str, int]
    """Whole instances left over, by type name."""
    cost_per_hour: float
    """$ per hour of all instances that are used, whole or in part."""
    optimizer: str = ""
    estimator: str = ""
    model: str = ""
    optimal: bool = False
    """Whether `bound_rps` proves that nothing better exists under the same estimator."""
    bound_rps: float | None = None
    """An upper bound on `throughput_rps` of any placement; None where none was computed."""
    seconds: float = 0.0
    """What the search took."""

    @property
    def throughput_rps(self) -> float:
        """Requests per second of all pipelines."""
        return sum(pipeline.estimate.throughput_rps for pipeline in self.pipelines)

    @property
    def kv_blocks(self) -> int:
        """KV-cache blocks of 16 tokens over all pipelines."""
        return sum(pipeline.estimate.kv_blocks for pipeline in self.pipelines)
