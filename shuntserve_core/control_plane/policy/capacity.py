"""GPUs that pipelines have, may have, and what their tensor stores hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from attrs import evolve, frozen

from shuntserve_core.types import Pipeline

Gpu = tuple[str, int]
"""Name of the node, and number of the GPU on it."""


@frozen
class FreeNode:
    """A node and those of its GPUs that a new pipeline may have."""

    name: str
    instance: str
    gpus: tuple[int, ...]


@frozen
class Held:
    """What a GPU's tensor store holds."""

    tensor_parallel: int
    rank: int
    layers: range


Holdings = Mapping[Gpu, Held]


def shape_of(pipeline: Pipeline) -> tuple[tuple[str, int, int], ...]:
    """A pipeline without its nodes: (instance type, tensor parallel, layers) of each stage."""
    return tuple((s.instance, s.tensor_parallel, s.layers) for s in pipeline.stages)


def gpus_of(pipeline: Pipeline) -> frozenset[Gpu]:
    """Every GPU that a pipeline uses."""
    return frozenset((stage.node, gpu) for stage in pipeline.stages for gpu in stage.gpus)


def nodes_of(pipeline: Pipeline) -> frozenset[str]:
    """Every node that a pipeline uses."""
    return frozenset(stage.node for stage in pipeline.stages)


def without_gpus(nodes: Sequence[FreeNode], used: Collection[Gpu]) -> list[FreeNode]:
    """The nodes with those GPUs that are not used; nodes without any are left out."""
    rest = [
        evolve(node, gpus=tuple(gpu for gpu in node.gpus if (node.name, gpu) not in used))
        for node in nodes
    ]
    return [node for node in rest if node.gpus]
