"""Whatever the cluster and the objective, a placement can be carried out and keeps its limits."""

from __future__ import annotations

from collections import Counter

import pytest
from attrs import evolve
from hypothesis import given, settings

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.optimizer import Optimizer, Problem
from shuntserve_core.testing.optimizers import OptimizerContract
from shuntserve_core.types import Placement
from shuntserve_plugins.optimizers.alpaserve import AlpaServe
from shuntserve_plugins.optimizers.beam_search import BeamSearch
from shuntserve_plugins.optimizers.hexgen import HexGen
from shuntserve_plugins.optimizers.single_pipeline import SinglePipeline
from tests.plugins.optimizers.problems import small_problems

ALL = ("throughput", "throughput-per-dollar", "cost")
QUICK = HexGen(population=20, generations=15)
OPTIMIZERS: dict[str, Optimizer] = {
    "beam-search": BeamSearch(),
    "beam-search, split": BeamSearch(split_instances=True, top_k=2),
    "alpaserve": AlpaServe(),
    "single-pipeline": SinglePipeline(),
    "hexgen": QUICK,
    "hexgen, pure": evolve(QUICK, layers="pure"),
}


class TestBeamSearch(OptimizerContract):
    objectives = ALL

    def optimizer(self) -> Optimizer:
        return BeamSearch()


class TestHexGen(OptimizerContract):
    objectives = ALL

    def optimizer(self) -> Optimizer:
        return QUICK


class TestAlpaServe(OptimizerContract):
    objectives = ALL

    def optimizer(self) -> Optimizer:
        return AlpaServe()


class TestSinglePipeline(OptimizerContract):
    objectives = ALL

    def optimizer(self) -> Optimizer:
        return SinglePipeline()


@pytest.mark.parametrize("name", OPTIMIZERS)
@given(problem=small_problems())
@settings(max_examples=40, deadline=None)
def test_any_placement_can_be_carried_out(name: str, problem: Problem) -> None:
    optimizer = OPTIMIZERS[name]
    try:
        placement = optimizer.place(problem)
    except UserError:  # that it fits, but nothing was found, depends on the optimizer
        return
    _assert_valid(problem, placement)
    again = optimizer.place(problem)
    assert evolve(placement, seconds=0.0) == evolve(again, seconds=0.0)


def _assert_valid(problem: Problem, placement: Placement) -> None:
    assert placement.pipelines
    gpus: Counter[str] = Counter()
    for pipeline in placement.pipelines:
        assert sum(stage.layers for stage in pipeline.stages) == problem.estimator.model.layers
        assert pipeline.estimate.feasible
        for stage in pipeline.stages:
            gpus[stage.instance] += stage.tensor_parallel
            instance = problem.cluster.catalog[stage.instance]
            if problem.whole_instances:
                assert stage.tensor_parallel == instance.gpu_count
        slo = problem.objective.slo
        if slo.latency is not None:
            factor = 1.0 if slo.mode == "hard" else 2.0
            assert pipeline.estimate.latency <= slo.latency * factor * (1 + 1e-9)
    for name, count in gpus.items():
        available = problem.cluster.counts[name] * problem.cluster.catalog[name].gpu_count
        assert count <= available
    if problem.objective.budget is not None:
        assert placement.cost_per_hour <= problem.objective.budget * (1 + 1e-6)
