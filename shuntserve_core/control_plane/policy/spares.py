"""Spare nodes: kept free, so that what is lost can go on in the same shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from attrs import evolve

from shuntserve_core.control_plane.policy.capacity import (
    FreeNode,
    Gpu,
    gpus_of,
    nodes_of,
    without_gpus,
)
from shuntserve_core.types import Pipeline


def keep_shapes(
    plans: Sequence[Pipeline], usable: Collection[str], free: Sequence[FreeNode]
) -> list[Pipeline | None]:
    """Each of these pipelines with spares in the place of its nodes that are not `usable`.

    `free` are GPUs that no other pipeline has, including their own on nodes that stay.  None for a
    pipeline whose types have no spare with enough GPUs left.
    """
    own = [frozenset(g for g in gpus_of(plan) if g[0] in usable) for plan in plans]
    reserved = frozenset[Gpu]().union(*own)
    spare = without_gpus(free, reserved)
    there = {(node.name, gpu) for node in free for gpu in node.gpus}
    kept: list[Pipeline | None] = []
    for plan, stays in zip(plans, own, strict=True):
        names = nodes_of(plan)
        others = [node for node in spare if node.name not in names]
        same = replace_nodes(plan, names - set(usable), others) if stays <= there else None
        if same is not None:
            there -= gpus_of(same)
            spare = without_gpus(spare, gpus_of(same))
        kept.append(same)
    return kept


def replace_nodes(
    pipeline: Pipeline, gone: Collection[str], free: Sequence[FreeNode]
) -> Pipeline | None:
    """The same pipeline with a free node of the same type for each one that is gone.

    The cheapest change there is: only the new nodes read weights.  None where a type has no
    node left with enough GPUs.
    """
    available = list(free)
    substitute: dict[str, FreeNode] = {}
    for name in sorted(nodes_of(pipeline) & set(gone)):
        needed = {gpu for s in pipeline.stages if s.node == name for gpu in s.gpus}
        instance = next(s.instance for s in pipeline.stages if s.node == name)
        fitting = [n for n in available if n.instance == instance and len(n.gpus) >= len(needed)]
        if not fitting:
            return None
        substitute[name] = min(fitting, key=lambda node: (len(node.gpus), node.name))
        available.remove(substitute[name])
    stages = []
    for stage in pipeline.stages:
        node = substitute.get(stage.node)
        if node is None:
            stages.append(stage)
            continue
        used = sorted({gpu for s in pipeline.stages if s.node == stage.node for gpu in s.gpus})
        gpus = tuple(node.gpus[used.index(gpu)] for gpu in stage.gpus)
        stages.append(evolve(stage, node=node.name, gpus=gpus))
    return Pipeline(tuple(stages), pipeline.estimate)


def without_spares(
    nodes: Sequence[FreeNode], busy: Collection[str], spares: Mapping[str, int]
) -> list[FreeNode]:
    """All but as many nodes of each type as are to be kept as spares: first those not `busy`."""
    left = Counter(dict(spares))
    kept = []
    for node in sorted(nodes, key=lambda node: (node.name in busy, node.name)):
        if left[node.instance] > 0:
            left[node.instance] -= 1
        else:
            kept.append(node)
    return kept
