"""HexGen, AlpaServe and single pipelines: known answers, and the parts that they are made of."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.errors import UserError
from shuntserve_core.types import GpuSpec, InstanceType, Link, ModelSpec, Objective
from shuntserve_plugins.optimizers.alpaserve import AlpaServe, balance
from shuntserve_plugins.optimizers.common import Candidate, Pool, choose, halves, parts
from shuntserve_plugins.optimizers.groups import share_out
from shuntserve_plugins.optimizers.hexgen import HexGen
from shuntserve_plugins.optimizers.single_pipeline import SinglePipeline, even_layers
from shuntserve_plugins.optimizers.tables import StageTables, position
from tests.plugins.optimizers.problems import LLAMA, QWEN, SMALL, published, shapes


def test_single_pipelines_are_even() -> None:
    placement = SinglePipeline().place(published(LLAMA))
    assert sorted([layers for _, _, layers in shape] for shape in shapes(placement)) == [
        [20] * 4,
        [27, 27, 26],
        [40, 40],
    ]
    known = [1.208135896940413, 0.21528408197213106]
    assert [p.estimate.throughput_rps for p in placement.pipelines][:2] == pytest.approx(known)


def test_more_instances_than_layers() -> None:
    assert even_layers(3, 3) == [1, 1, 1]
    placement = SinglePipeline().place(published(ModelSpec("two", 2, 2048, 16, 8, 128, 8192, 999)))
    assert all(len(shape) == 2 for shape in shapes(placement))


def test_alpaserve_replicates_where_it_serves_more() -> None:
    """On whole g5.12xlarge, two pipelines of one stage come out ahead of one badly cut."""
    placement = AlpaServe().place(published(QWEN, whole_instances=True))
    assert shapes(placement).count([("g5.12xlarge", 4, 64)]) == 2
    assert placement.throughput_rps == pytest.approx(5.865183789888193 + 3.2464, abs=1e-3)


def test_alpaserve_cuts_instances_where_it_may() -> None:
    placement = AlpaServe().place(published(QWEN))
    assert {stage.tensor_parallel for p in placement.pipelines for stage in p.stages} == {1}
    whole = AlpaServe(split_instances=False).place(published(QWEN))
    assert placement.throughput_rps > whole.throughput_rps


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_balance_finds_the_least_greatest_latency(depth: int) -> None:
    problem = published(SMALL)
    pool = Pool.of(problem)
    tables = StageTables(problem.estimator, pool.kinds)
    for kind in range(len(pool.kinds)):

        def slowest(layers: tuple[int, ...], kind: int = kind) -> float:
            seconds = []
            for stage, count in enumerate(layers):
                of_layer, fixed = problem.estimator.alone(
                    pool.kinds[kind], position(stage, depth), depth
                )
                seconds.append(of_layer * count + fixed)
            return max(seconds)

        cuts = [cut for cut in product(range(1, 7), repeat=depth) if sum(cut) == SMALL.layers]
        ours = balance(tables, kind, depth)
        assert ours is not None
        assert slowest(tuple(ours.tolist())) == pytest.approx(min(map(slowest, cuts)))


def test_balance_says_when_nothing_fits() -> None:
    problem = published(LLAMA)
    pool = Pool.of(problem)
    tables = StageTables(problem.estimator, pool.kinds)
    row = [kind.instance for kind in pool.kinds].index("g6e.xlarge")
    assert balance(tables, row, 3) is None
    four = balance(tables, row, 4)
    assert four is not None
    assert four.tolist() == [20] * 4


@pytest.mark.parametrize("layers", ["pure", "relayered"])
def test_hexgen_beats_the_published_search_with_halves(layers: str) -> None:
    placement = HexGen(layers=layers).place(published(LLAMA))
    assert placement.throughput_rps > 3.4
    assert {2, 4} >= {s.tensor_parallel for p in placement.pipelines for s in p.stages} - {1}


def test_hexgen_layers_planned_anew_are_no_worse() -> None:
    for seed in range(3):
        problem = published(QWEN, seed=seed)
        pure = HexGen(layers="pure", population=20, generations=20).place(problem)
        again = HexGen(population=20, generations=20).place(problem)
        assert again.throughput_rps >= pure.throughput_rps


def test_hexgen_follows_its_seed() -> None:
    quick = HexGen(layers="pure", population=4, generations=2)
    plans = [shapes(quick.place(published(LLAMA, seed=seed))) for seed in (1, 1, 2, 3, 4)]
    assert plans[0] == plans[1]
    assert any(plan != plans[0] for plan in plans)


def test_hexgen_without_time_returns_its_first_guess() -> None:
    placement = HexGen().place(published(QWEN, time_limit=0.0))
    assert placement.pipelines


def test_shares_of_layers() -> None:
    assert share_out(80, np.array([[90, 90, 45, 45]])).tolist() == [[27, 27, 13, 13]]
    assert share_out(9, np.array([[90, 1, 1]])).tolist() == [[7, 1, 1]]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=8), st.integers(8, 90))
@settings(max_examples=50, deadline=None)
def test_shares_add_up(memory: list[int], total: int) -> None:
    layers = share_out(total, np.array([memory]))[0]
    assert layers.sum() == total
    assert layers.min() >= 1
    exact = total * np.array(memory) / sum(memory)
    if exact.min() >= 1:
        assert np.abs(layers - exact).max() < 1


def _instance(gpus: int) -> InstanceType:
    gpu = GpuSpec("gpu", 1, {"float16": 1.0}, 1.0)
    return InstanceType("type", gpu, gpus, Link(1.0), Link(1.0))


@pytest.mark.parametrize(
    ("gpus", "in_parts", "in_halves"),
    [(1, [1], [1]), (4, [4, 2, 1], [4, 2]), (6, [6, 2, 1], [6, 3]), (8, [8, 4, 2, 1], [8, 4])],
)
def test_what_an_instance_is_cut_into(gpus: int, in_parts: list[int], in_halves: list[int]) -> None:
    assert list(parts(_instance(gpus))) == in_parts
    assert list(halves(_instance(gpus))) == in_halves


def _candidates() -> tuple[Pool, list[Candidate]]:
    """Five g6e.xlarge... alone on their types: worth 6, 2 and 1 for 2.29, 1.94 and 0.70 $/h."""
    pool = Pool.of(published(QWEN))
    return pool, [pool.candidate([kind], [64], worth) for kind, worth in enumerate((6.0, 2.0, 1.0))]


@pytest.mark.parametrize(
    ("objective", "worths"),
    [
        (Objective(), [6, 2, 1]),
        (Objective(budget=3.0), [6, 1]),
        (Objective(kind="throughput-per-dollar"), [6]),
        (Objective(kind="cost", rate=0.5), [1]),
        (Objective(kind="cost", rate=6.5), [6, 1]),
        (Objective(kind="cost", rate=9.0), [6, 2, 1]),
    ],
)
def test_choosing_by_the_objective(objective: Objective, worths: list[float]) -> None:
    pool, candidates = _candidates()
    chosen = choose(pool, objective, candidates)
    assert sorted((c.worth for c in chosen), reverse=True) == worths


def test_choosing_refuses_a_rate_out_of_reach_or_budget() -> None:
    pool, candidates = _candidates()
    for objective in (
        Objective(kind="cost", rate=9.5),
        Objective(kind="cost", rate=9.0, budget=4.0),
    ):
        with pytest.raises(UserError, match="demanded"):
            choose(pool, objective, candidates)
