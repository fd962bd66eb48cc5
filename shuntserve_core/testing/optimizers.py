"""What every optimizer must satisfy, on small problems that are quick to search."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from attrs import evolve

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.optimizer import Optimizer, Problem
from shuntserve_core.placement_json import placement_from_json, placement_to_json
from shuntserve_core.registry import Registry
from shuntserve_core.types import (
    Cluster,
    GpuSpec,
    InstanceType,
    Link,
    ModelSpec,
    Objective,
    Offer,
    Placement,
    Workload,
)

SMALL = GpuSpec("small", 4_000_000_000, {"float16": 60e12}, 300e9)
LARGE = GpuSpec("large", 48_000_000_000, {"float16": 200e12}, 800e9)
NETWORK = Link(5e9, 1e-3)
MODEL = ModelSpec("contract-model", 8, 4096, 32, 8, 128, 14336, 32000)


def small_cluster() -> Cluster:
    """Two machines with four small GPUs each, and three with a large one."""
    four = InstanceType("four-small", SMALL, 4, Link(4e9, 0.1e-3), NETWORK, price=2.0)
    one = InstanceType("one-large", LARGE, 1, Link(4e9, 0.1e-3), NETWORK, price=0.9)
    return Cluster((Offer(four, 2, 2.0), Offer(one, 3, 0.9)))


class OptimizerContract:
    """Subclass this, name the class `Test...`, and return yours from `optimizer`."""

    estimator = "paper"
    """Registered name of the estimator that the problems use."""
    objectives: tuple[str, ...] = ("throughput",)
    """Kinds of `Objective` that it can follow; it must refuse the others with a `UserError`."""

    def optimizer(self) -> Optimizer:
        """A new optimizer, with options that make it quick."""
        raise NotImplementedError

    def problem(
        self,
        *,
        model: ModelSpec = MODEL,
        objective: Objective | None = None,
        whole_instances: bool = False,
    ) -> Problem:
        """A small problem."""
        cluster = small_cluster()
        workload = Workload(200, 50, max_length=1024)
        bound = Registry().get("estimator", self.estimator)().bind(model, workload, cluster.catalog)
        return Problem(
            cluster=cluster,
            objective=objective or Objective(),
            estimator=bound,
            estimator_name=self.estimator,
            whole_instances=whole_instances,
            time_limit=20.0,
        )

    @pytest.fixture(params=["split", "whole"])
    def case(self, request: pytest.FixtureRequest) -> tuple[Problem, Placement]:
        """A problem with the optimizer's answer, with and without parts of instances."""
        problem = self.problem(whole_instances=request.param == "whole")
        return problem, self.optimizer().place(problem)

    def test_every_pipeline_holds_the_whole_model(self, case: tuple[Problem, Placement]) -> None:
        """No layer is left out, and there is at least one pipeline."""
        problem, placement = case
        assert placement.pipelines
        for pipeline in placement.pipelines:
            layers = sum(stage.layers for stage in pipeline.stages)
            assert layers == problem.estimator.model.layers

    def test_stages_are_allowed(self, case: tuple[Problem, Placement]) -> None:
        """Degrees exist on the instance and suit the model; whole instances where asked."""
        problem, placement = case
        for pipeline in placement.pipelines:
            for stage in pipeline.stages:
                instance = problem.cluster.catalog[stage.instance]
                assert stage.tensor_parallel <= instance.gpu_count
                refused = problem.estimator.model.refuse_tensor_parallel(stage.tensor_parallel)
                assert refused is None
                if problem.whole_instances:
                    assert stage.tensor_parallel == instance.gpu_count

    def test_no_gpu_is_used_twice(self, case: tuple[Problem, Placement]) -> None:
        """Each stage has GPUs of its own on a node that there is."""
        problem, placement = case
        stages = [stage for pipeline in placement.pipelines for stage in pipeline.stages]
        gpus = Counter((stage.node, gpu) for stage in stages for gpu in stage.gpus)
        assert gpus
        assert set(gpus.values()) == {1}
        for stage in stages:
            assert len(stage.gpus) == stage.tensor_parallel
            name, _, number = stage.node.rpartition("#")
            assert name == stage.instance
            assert 0 <= int(number) < problem.cluster.counts[name]

    def test_what_is_left_and_what_it_costs(self, case: tuple[Problem, Placement]) -> None:
        """Used and unused instances add up to the cluster, and the used ones to the price."""
        problem, placement = case
        used = Counter(
            node.rpartition("#")[0]
            for node in {s.node for pipeline in placement.pipelines for s in pipeline.stages}
        )
        for name, count in problem.cluster.counts.items():
            assert placement.unused.get(name, 0) + used[name] == count
        cost = sum(problem.cluster.prices[name] * count for name, count in used.items())
        assert placement.cost_per_hour == pytest.approx(cost)

    def test_estimates_are_the_estimators(self, case: tuple[Problem, Placement]) -> None:
        """An optimizer reports what the configured estimator says of its pipelines."""
        problem, placement = case
        for pipeline in placement.pipelines:
            stages = [(stage.kind, stage.layers) for stage in pipeline.stages]
            expected = problem.estimator.estimate(stages)
            assert pipeline.estimate.throughput_rps == pytest.approx(expected.throughput_rps)
            assert pipeline.estimate.kv_blocks == expected.kv_blocks
            assert pipeline.estimate.feasible

    def test_bounds_are_bounds(self, case: tuple[Problem, Placement]) -> None:
        """`optimal` needs a bound that is reached."""
        _, placement = case
        if placement.bound_rps is not None:
            assert placement.bound_rps >= placement.throughput_rps * (1 - 1e-9)
        if placement.optimal:
            assert placement.bound_rps == pytest.approx(placement.throughput_rps, rel=1e-4)

    def test_the_placement_survives_json(self, case: tuple[Problem, Placement]) -> None:
        """What `plan --out` writes is what `serve` reads."""
        problem, placement = case
        text = json.dumps(placement_to_json(placement, problem.estimator.workload))
        assert placement_from_json(json.loads(text)) == placement

    def test_it_names_itself(self, case: tuple[Problem, Placement]) -> None:
        """Tables and files say what made a placement."""
        problem, placement = case
        assert placement.optimizer
        assert placement.estimator == problem.estimator_name
        assert placement.model == problem.estimator.model.name

    def test_the_same_seed_gives_the_same_placement(self) -> None:
        """Apart from the seconds that it took."""
        first, second = (self.optimizer().place(self.problem()) for _ in range(2))
        assert evolve(first, seconds=0.0) == evolve(second, seconds=0.0)

    def test_a_model_that_fits_nowhere_is_refused(self) -> None:
        """As the user's mistake, with a remedy."""
        huge = evolve(MODEL, layers=2000)
        with pytest.raises(UserError) as caught:
            self.optimizer().place(self.problem(model=huge))
        assert caught.value.remedy

    @pytest.mark.parametrize("kind", ["throughput", "throughput-per-dollar", "cost"])
    def test_objectives_are_followed_or_refused(self, kind: str) -> None:
        """The demanded rate is reached; what an optimizer cannot do it says."""
        rate = 30.0 if kind == "cost" else None
        problem = self.problem(objective=Objective(kind=kind, rate=rate))
        if kind not in self.objectives:
            with pytest.raises(UserError):
                self.optimizer().place(problem)
            return
        placement = self.optimizer().place(problem)
        assert placement.throughput_rps >= (rate or 0)
