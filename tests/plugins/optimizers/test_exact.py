"""`exact` finds what trying everything finds, and proves it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.estimator import Estimator
from shuntserve_core.interfaces.optimizer import Optimizer, Problem
from shuntserve_core.planning.building import build_placement, stage_kinds, worth
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
    Slo,
    StageKind,
    Workload,
)
from shuntserve_plugins.estimators.paper import Paper
from shuntserve_plugins.estimators.roofline import Roofline
from shuntserve_plugins.optimizers.alpaserve import AlpaServe
from shuntserve_plugins.optimizers.beam_search import BeamSearch
from shuntserve_plugins.optimizers.exact import Exact
from shuntserve_plugins.optimizers.hexgen import HexGen
from shuntserve_plugins.optimizers.single_pipeline import SinglePipeline

LLAMA = ModelSpec("llama", 80, 8192, 64, 8, 128, 28672, 128256)
QWEN = ModelSpec("qwen", 64, 5120, 64, 8, 128, 25600, 151936, family="qwen3")
SMALL = ModelSpec("small", 6, 2048, 16, 4, 128, 8192, 64000)
CATALOG = Registry().instance_types
COLUMN_LIMIT = 5000


def default_cluster(model: ModelSpec, *, whole: bool) -> Problem:
    counts = {"g5.12xlarge": 2, "g6.12xlarge": 3, "g6e.xlarge": 4}
    cluster = Cluster(
        tuple(Offer(CATALOG[n], c, CATALOG[n].spot_price or 0.0) for n, c in counts.items())
    )
    estimator = Paper().bind(model, Workload(763, 232, 8192), cluster.catalog)
    return Problem(cluster, Objective(), estimator, "paper", whole_instances=whole)


@pytest.mark.parametrize(
    ("model", "whole", "least"),
    [(LLAMA, True, 2.8305), (QWEN, True, 9.4507), (QWEN, False, 13.3), (LLAMA, False, 3.1)],
)
def test_default_cluster(model: ModelSpec, whole: bool, least: float) -> None:
    placement = Exact().place(default_cluster(model, whole=whole))
    assert placement.throughput_rps >= least
    assert placement.optimal
    assert placement.bound_rps == pytest.approx(placement.throughput_rps)


# Small clusters, on which everything can be tried.

Columns = list[tuple[float, tuple[tuple[StageKind, int], ...]]]


def every_pipeline(problem: Problem, stages: int) -> Columns:
    """The best pipeline of every multiset of kinds, by trying all orders and splits."""
    kinds = stage_kinds(problem)
    layers = problem.estimator.model.layers
    best: dict[tuple[int, ...], tuple[float, tuple[tuple[StageKind, int], ...]]] = {}
    for depth in range(1, stages + 1):
        splits = [
            split
            for split in itertools.product(range(1, layers + 1), repeat=depth)
            if sum(split) == layers
        ]
        rows = list(itertools.product(itertools.product(range(len(kinds)), repeat=depth), splits))
        if not rows:
            continue
        choice, split = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
        values = worth(problem.objective, problem.estimator.scores(kinds, choice, split))
        for index in np.flatnonzero(values > 0):
            key = tuple(sorted(choice[index].tolist()))
            if values[index] > best.get(key, (0.0, ()))[0]:
                pipeline = zip(choice[index].tolist(), split[index].tolist(), strict=True)
                stages_of = tuple((kinds[kind], count) for kind, count in pipeline)
                best[key] = (float(values[index]), stages_of)
    return list(best.values())


def placements(problem: Problem, columns: Columns) -> Iterator[tuple[float, Placement]]:
    """Every placement of these pipelines that the cluster can hold, with its worth."""

    def extend(start: int, chosen: list[int]) -> Iterator[tuple[float, Placement]]:
        for index in range(start, len(columns)):
            longer = [*chosen, index]
            try:
                placement = build_placement(
                    problem, [columns[i][1] for i in longer], optimizer="", seconds=0
                )
            except ValueError:
                continue
            yield sum(columns[i][0] for i in longer), placement
            yield from extend(index, longer)

    yield from extend(0, [])


def value(objective: Objective, total: float, placement: Placement) -> float | None:
    """Of the objective, greater is better; None where it is not met."""
    if objective.budget is not None and placement.cost_per_hour > objective.budget + 1e-9:
        return None
    if objective.kind == "throughput":
        return total
    if objective.kind == "throughput-per-dollar":
        return total / placement.cost_per_hour
    assert objective.rate is not None
    return -placement.cost_per_hour if total >= objective.rate - 1e-9 else None


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    offers = []
    for number in range(draw(st.integers(1, 2))):
        gpu = GpuSpec(
            f"gpu{number}",
            memory_bytes=draw(st.integers(800, 3000)) * 10**6,
            flops={"float16": draw(st.integers(20, 200)) * 1e12},
            memory_bandwidth=draw(st.integers(100, 900)) * 1e9,
        )
        instance = InstanceType(
            f"type{number}",
            gpu,
            draw(st.sampled_from([1, 2, 3, 4] if number else [1, 2])),
            Link(draw(st.integers(1, 50)) * 1e9),
            Link(5e9, 1e-3),
        )
        most = 2 if instance.gpu_count == 1 else 1
        offers.append(Offer(instance, draw(st.integers(1, most)), draw(st.integers(1, 30)) / 10))
    cluster = Cluster(tuple(offers))
    workload = Workload(draw(st.integers(50, 700)), draw(st.integers(10, 300)), 1024)
    estimator = Paper().bind(SMALL, workload, cluster.catalog)
    objective = draw(
        st.one_of(
            st.just(Objective()),
            st.just(Objective("throughput-per-dollar")),
            st.builds(Objective, st.just("cost"), st.floats(0.1, 20)),
            st.builds(Objective, st.just("throughput"), budget=st.floats(0.5, 6)),
            st.builds(
                Objective,
                slo=st.builds(
                    Slo,
                    ttft=st.none() | st.floats(0.05, 5),
                    tpot=st.none() | st.floats(0.005, 0.5),
                    latency=st.none() | st.floats(0.5, 20),
                    mode=st.sampled_from(["soft", "hard"]),
                ),
            ),
        )
    )
    return Problem(cluster, objective, estimator, "paper", whole_instances=draw(st.booleans()))


def best_of_all(problem: Problem, stages: int) -> float | None:
    columns = every_pipeline(problem, stages)
    found = [
        value(problem.objective, total, placement)
        for total, placement in itertools.islice(placements(problem, columns), COLUMN_LIMIT)
    ]
    return max((v for v in found if v is not None), default=None)


@settings(max_examples=40, deadline=None)
@given(problems())
def test_nothing_is_better(problem: Problem) -> None:
    """Against brute force: same value, proved; and an error where nothing is possible."""
    expected = best_of_all(problem, 4)
    if expected is None:
        with pytest.raises(UserError):
            Exact(max_stages=4).place(problem)
        return
    placement = Exact(max_stages=4).place(problem)
    total = float(sum(_worth(problem, placement)))
    got = value(problem.objective, total, placement)
    assert got == pytest.approx(expected, rel=1e-6)
    assert placement.optimal


def _worth(problem: Problem, placement: Placement) -> Iterator[float]:
    for pipeline in placement.pipelines:
        kinds = [stage.kind for stage in pipeline.stages]
        layers = np.array([[stage.layers for stage in pipeline.stages]])
        scores = problem.estimator.scores(kinds, np.arange(len(kinds))[None, :], layers)
        yield float(worth(problem.objective, scores)[0])


@settings(max_examples=15, deadline=None)
@given(problems())
def test_generated_sets_keep_within_their_bound(problem: Problem) -> None:
    """Without listing the sets: never above the best, whose value is never above the bound."""
    problem = evolve(problem, objective=Objective())
    expected = best_of_all(problem, 4)
    if expected is None:
        return
    placement = Exact(max_stages=4, max_sets=1, seconds=0.5).place(problem)
    assert placement.bound_rps is not None
    assert placement.throughput_rps <= expected * (1 + 1e-9)
    assert expected <= placement.bound_rps * (1 + 1e-9)


RIVALS: dict[str, Optimizer] = {
    "beam-search": BeamSearch(),
    "beam-search, split": BeamSearch(split_instances=True),
    "alpaserve": AlpaServe(),
    "single-pipeline": SinglePipeline(),
    "hexgen": HexGen(population=20, generations=10),
}


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "generated"])
@settings(max_examples=20, deadline=None)
@given(problem=problems(), estimator=st.sampled_from([Paper(), Roofline()]))
def test_never_below_another_optimizer(
    listed: bool, problem: Problem, estimator: Estimator
) -> None:
    """On the same estimator and objective, whether sets of stages are listed or generated."""
    bound = estimator.bind(SMALL, problem.estimator.workload, problem.cluster.catalog)
    problem = evolve(problem, estimator=bound)
    exact = Exact() if listed else Exact(max_sets=1, seconds=0.3)
    reached = achieved(exact, problem)
    for name, rival in RIVALS.items():
        other = achieved(rival, problem)
        if other is None:
            continue
        assert reached is not None, name
        assert reached >= other - 1e-6 * abs(other), name


def achieved(optimizer: Optimizer, problem: Problem) -> float | None:
    """The objective's value of what an optimizer places; None where it finds nothing."""
    try:
        placement = optimizer.place(problem)
    except UserError:
        return None
    return value(problem.objective, sum(_worth(problem, placement)), placement)


def test_a_model_that_fits_nowhere() -> None:
    problem = default_cluster(LLAMA, whole=False)
    one = evolve(problem.cluster.offers[1], count=1)
    problem = evolve(problem, cluster=Cluster((one,)))
    with pytest.raises(UserError, match="bytes"):
        Exact().place(problem)


@pytest.mark.parametrize("options", [Exact(), Exact(max_sets=1, seconds=1)])
def test_nothing_to_rent_or_no_degree_that_divides_the_heads(options: Exact) -> None:
    problem = default_cluster(LLAMA, whole=False)
    none = tuple(evolve(offer, count=0) for offer in problem.cluster.offers)
    with pytest.raises(UserError):
        options.place(evolve(problem, cluster=Cluster(none)))
    odd = default_cluster(evolve(LLAMA, heads=7, kv_heads=7), whole=True)
    four_gpus = Cluster(odd.cluster.offers[:2])
    with pytest.raises(UserError):
        options.place(evolve(odd, cluster=four_gpus))


def test_a_rate_out_of_reach_says_what_can_be_reached() -> None:
    problem = evolve(default_cluster(QWEN, whole=True), objective=Objective("cost", rate=1000))
    with pytest.raises(UserError, match="at most"):
        Exact().place(problem)
