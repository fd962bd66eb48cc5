"""The placement of AlpaServe (Li et al., OSDI 2023, section 4), for each instance type alone.

Its auto-parallelization cuts a model into stages so that the slowest takes the least time, by
dynamic programming; groups of equal size then hold replicas.  Docs: explanation/optimizers.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from attrs import field, frozen
from attrs.validators import ge

from shuntserve_core.interfaces.estimator import Floats, Ints
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.planning.building import build_placement, worth
from shuntserve_core.planning.refusal import explain_no_pipeline
from shuntserve_core.types import Placement
from shuntserve_plugins.optimizers.common import ROUNDING, Candidate, Pool, choose, parts, whole
from shuntserve_plugins.optimizers.tables import StageTables, position

NAME = "alpaserve"


@frozen
class AlpaServe:
    """Equal groups of one instance type, stages balanced by latency, replicated."""

    max_stages: int = field(default=16, validator=ge(1))
    """Most stages of a pipeline."""
    split_instances: bool = True
    """Whether a stage may take part of an instance's GPUs, as in the paper."""

    def place(self, problem: Problem) -> Placement:
        """For each type the number of stages and degree whose replicas serve most.

        Raises `UserError` where the model fits on no type alone.
        """
        started = time.monotonic()
        pool = Pool.of(problem, parts if self.split_instances else whole)
        tables = StageTables(problem.estimator, pool.kinds)
        best: dict[str, list[Candidate]] = {}
        for replicas in self._groupings(problem, pool, tables, started + problem.time_limit):
            name = replicas[0].stages[0][0].instance
            if _total(replicas) > _total(best.get(name, [])):
                best[name] = replicas
        chosen = choose(pool, problem.objective, [one for each in best.values() for one in each])
        if not chosen:
            raise explain_no_pipeline(problem)
        stages = [pipeline.stages for pipeline in chosen]
        seconds = time.monotonic() - started
        return build_placement(problem, stages, optimizer=NAME, seconds=seconds)

    def _groupings(
        self, problem: Problem, pool: Pool, tables: StageTables, deadline: float
    ) -> Iterator[list[Candidate]]:
        """Every way to cut the instances of a type into equal pipelines that hold the model."""
        layers = problem.estimator.model.layers
        for kind in range(len(pool.kinds)):
            row = pool.need[kind]
            units = int((pool.available[row > 0] // row[row > 0])[0])
            for depth in range(1, min(units, self.max_stages, layers) + 1):
                if time.monotonic() > deadline:
                    return
                cut = balance(tables, kind, depth)
                if cut is None:
                    continue
                choice = np.full((1, depth), kind)
                scores = tables.scores(choice, cut[None, :])
                one = pool.candidate(
                    [kind] * depth, cut.tolist(), worth(problem.objective, scores)[0]
                )
                yield [one] * (units // depth)


def _total(replicas: list[Candidate]) -> float:
    return sum(candidate.worth for candidate in replicas)


def balance(tables: StageTables, kind: int, depth: int) -> Ints | None:
    """Layers of `depth` stages on one kind so that the slowest is as fast as it can be.

    F(s, j), the least greatest latency of s stages with j layers, is the least over the layers l
    of stage s of max(F(s − 1, j − l), latency of stage s with l layers).  Among equals the least
    sum of squares decides, so that no stage is left nearly empty.  None if nothing fits.
    """
    total = tables.estimator.model.layers
    counts = np.arange(total + 1)
    before = counts[:, None] - counts
    slowest = np.where(counts == 0, 0.0, np.inf)
    squares = slowest
    choices = []
    for stage in range(depth):
        latency = _latencies(tables, kind, stage, depth)
        worst = np.where(before >= 0, np.maximum(slowest[before], latency), np.inf)
        slowest = worst.min(axis=1)
        equal = worst <= slowest[:, None] * (1 + ROUNDING)
        sums = np.where(equal, squares[before] + latency**2, np.inf)
        choices.append(sums.argmin(axis=1))
        squares = sums.min(axis=1)
    if np.isinf(slowest[total]):
        return None
    layers = np.zeros(depth, dtype=np.int64)
    left = total
    for stage in reversed(range(depth)):
        layers[stage] = choices[stage][left]
        left -= layers[stage]
    return layers


def _latencies(tables: StageTables, kind: int, stage: int, depth: int) -> Floats:
    """Seconds of one request on a stage, by its layers; infinite where they do not fit."""
    total = tables.estimator.model.layers
    place = position(stage, depth)
    counts = np.arange(total + 1)
    seconds = tables.alone(place, depth, np.full(total + 1, kind), counts)
    fits = (tables.ranks(place)[kind] > 0) & (counts > 0)
    return np.where(fits, seconds, np.inf)
