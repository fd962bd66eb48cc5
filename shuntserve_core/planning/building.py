"""What every optimizer shares: usable stages, a pipeline's worth, and building the placement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shuntserve_core.interfaces.estimator import Floats, Scores
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.types import Objective, Pipeline, Placement, Slo, Stage, StageKind

Chosen = Sequence[tuple[StageKind, int]]
"""A pipeline as an optimizer chooses it: (kind, layers) in order."""


def stage_kinds(problem: Problem) -> list[StageKind]:
    """Everything that a stage may run on: offered, allowed, and not refused by the model."""
    kinds = []
    for offer in problem.cluster.offers:
        instance = offer.instance
        degrees = instance.tensor_parallel_degrees
        for degree in (instance.gpu_count,) if problem.whole_instances else degrees:
            if offer.count and not problem.estimator.model.refuse_tensor_parallel(degree):
                kinds.append(StageKind(instance.name, degree))
    return kinds


def slo_factor(slo: Slo, latency: Floats, ttft: Floats, tpot: Floats) -> Floats:
    """What a pipeline's throughput is multiplied by for missing its limits; between 0 and 1.

    The greatest overrun counts, overrun = (seconds − limit) / limit.  Soft: 1 − overrun, at least
    0 (arXiv 2606.18600, which knows one limit).  Hard: 0 for any overrun.
    """
    overrun = np.zeros(np.shape(latency))
    for limit, seconds in ((slo.latency, latency), (slo.ttft, ttft), (slo.tpot, tpot)):
        if limit is not None:
            overrun = np.maximum(overrun, seconds / limit - 1)
    if slo.mode == "hard":
        return np.where(overrun > 0, 0.0, 1.0)
    return np.maximum(1 - overrun, 0.0)


def worth(objective: Objective, scores: Scores) -> Floats:
    """Throughput that counts towards the objective, after the SLOs: an array over pipelines.

    Optimizers maximise (or, for `cost`, reach the demanded rate with) the sum of it.
    """
    if not objective.slo.limited:
        return scores.throughput_rps
    factor = slo_factor(objective.slo, scores.latency, scores.ttft, scores.tpot)
    return scores.throughput_rps * factor


def build_placement(
    problem: Problem,
    chosen: Sequence[Chosen],
    *,
    optimizer: str,
    seconds: float,
    optimal: bool = False,
    bound_rps: float | None = None,
) -> Placement:
    """Give every stage its node and GPUs, and add up what is used, what is left and the cost.

    Raises ValueError where the stages do not fit into the cluster: a mistake of the optimizer.
    """
    nodes = _assign_nodes(problem, chosen)
    pipelines = []
    for pipeline, assigned in zip(chosen, nodes, strict=True):
        stages = tuple(
            Stage(kind.instance, kind.tensor_parallel, layers, node, gpus)
            for (kind, layers), (node, gpus) in zip(pipeline, assigned, strict=True)
        )
        pipelines.append(Pipeline(stages, problem.estimator.estimate(pipeline)))
    used = {node for assigned in nodes for node, _ in assigned}
    counts = dict.fromkeys(problem.cluster.catalog, 0)
    for node in used:
        counts[node.rpartition("#")[0]] += 1
    prices = problem.cluster.prices
    return Placement(
        pipelines=tuple(pipelines),
        unused={name: count - counts[name] for name, count in problem.cluster.counts.items()},
        cost_per_hour=sum(prices[name] * count for name, count in counts.items()),
        optimizer=optimizer,
        estimator=problem.estimator_name,
        model=problem.estimator.model.name,
        optimal=optimal,
        bound_rps=bound_rps,
        seconds=seconds,
    )


Assigned = list[tuple[str, tuple[int, ...]]]
"""Node and GPUs of each stage of a pipeline."""


def _assign_nodes(problem: Problem, chosen: Sequence[Chosen]) -> list[Assigned]:
    """First fit, widest stages first.

    It needs the fewest nodes, because each degree divides the next (powers of two; all GPUs of
    an instance fill it): see Coffman, Garey and Johnson, "Bin packing with divisible item sizes",
    1987.
    """
    order = sorted(
        ((kind, p, s) for p, pipeline in enumerate(chosen) for s, (kind, _) in enumerate(pipeline)),
        key=lambda item: (item[0].instance, -item[0].tensor_parallel, item[1], item[2]),
    )
    free: dict[str, list[list[int]]] = {}
    assigned: dict[tuple[int, int], tuple[str, tuple[int, ...]]] = {}
    for kind, p, s in order:
        nodes = free.setdefault(kind.instance, [])
        wanted = kind.tensor_parallel
        number = next((i for i, gpus in enumerate(nodes) if len(gpus) >= wanted), len(nodes))
        if number == len(nodes):
            nodes.append(list(range(problem.cluster.catalog[kind.instance].gpu_count)))
        if number >= problem.cluster.counts[kind.instance] or len(nodes[number]) < wanted:
            raise ValueError(f"the stages do not fit into the instances of {kind.instance}")
        assigned[p, s] = (f"{kind.instance}#{number}", tuple(nodes[number][:wanted]))
        del nodes[number][:wanted]
    return [[assigned[p, s] for s in range(len(pipeline))] for p, pipeline in enumerate(chosen)]
