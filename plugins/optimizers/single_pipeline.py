"""What one does without a search: a pipeline an instance type, layers split evenly."""

from __future__ import annotations

import time

import numpy as np
from attrs import frozen

from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.planning.building import build_placement, worth
from shuntserve_core.planning.refusal import explain_no_pipeline
from shuntserve_core.types import Placement
from shuntserve_plugins.optimizers.common import Candidate, Pool, choose
from shuntserve_plugins.optimizers.tables import StageTables

NAME = "single-pipeline"


@frozen
class SinglePipeline:
    """One pipeline over all instances of a type, each with all its GPUs: as vLLM is often run."""

    def place(self, problem: Problem) -> Placement:
        """Split evenly; types on which the model does not fit are unused.

        Raises `UserError` where it fits on none.
        """
        started = time.monotonic()
        pool = Pool.of(problem)
        tables = StageTables(problem.estimator, pool.kinds)
        pipelines = [_even_pipeline(problem, pool, tables, k) for k in range(len(pool.kinds))]
        chosen = choose(pool, problem.objective, pipelines)
        if not chosen:
            raise explain_no_pipeline(problem)
        stages = [pipeline.stages for pipeline in chosen]
        seconds = time.monotonic() - started
        return build_placement(problem, stages, optimizer=NAME, seconds=seconds)


def _even_pipeline(problem: Problem, pool: Pool, tables: StageTables, kind: int) -> Candidate:
    """All instances of a type, or as many as there are layers."""
    total = problem.estimator.model.layers
    instances = int((pool.available // np.maximum(pool.need[kind], 1))[pool.need[kind] > 0][0])
    layers = even_layers(total, min(instances, total))
    choice = np.full((1, len(layers)), kind)
    scores = tables.scores(choice, np.array([layers]))
    return pool.candidate(choice[0], layers, worth(problem.objective, scores)[0])


def even_layers(layers: int, stages: int) -> list[int]:
    """Cut layers into stages that differ by one at most, the larger ones first."""
    each, more = divmod(layers, stages)
    return [each + 1] * more + [each] * (stages - more)
