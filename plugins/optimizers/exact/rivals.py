"""What simpler searches find: pipelines to start from where sets of stages cannot be listed."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import evolve

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.optimizer import Optimizer, Problem
from shuntserve_plugins.optimizers.alpaserve import AlpaServe
from shuntserve_plugins.optimizers.beam_search import BeamSearch
from shuntserve_plugins.optimizers.common import Stages
from shuntserve_plugins.optimizers.single_pipeline import SinglePipeline

_SHARE = 0.4
"""Of the time limit, for each search."""
_FEW_GPUS = 64
"""Up to how many GPUs the greedy search is quick with parts of instances as well."""


def rival_placements(problem: Problem, depth: int) -> Iterator[list[Stages]]:
    """Placements of other searches, as far as their pipelines are no longer than `depth`."""
    gpus = sum(offer.count * offer.instance.gpu_count for offer in problem.cluster.offers)
    few = gpus <= _FEW_GPUS
    searches: list[Optimizer] = [BeamSearch(max_stages=min(13, depth)), SinglePipeline()]
    if few:
        searches.append(AlpaServe())
    if few and not problem.whole_instances:
        searches.append(BeamSearch(max_stages=min(13, depth), split_instances=True))
    problem = evolve(problem, time_limit=_SHARE * problem.time_limit)
    for search in searches:
        try:
            placement = search.place(problem)
        except UserError:
            continue
        pipelines = [
            tuple((stage.kind, stage.layers) for stage in pipeline.stages)
            for pipeline in placement.pipelines
        ]
        if all(len(pipeline) <= depth for pipeline in pipelines):
            yield pipelines
