"""The published search: its answers, its options, and its arithmetic."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from attrs import evolve

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.types import ModelSpec, Objective, Slo
from shuntserve_plugins.optimizers.beam_search import BeamSearch
from shuntserve_plugins.optimizers.common import Pool, parts
from shuntserve_plugins.optimizers.frontier import Limits, search
from shuntserve_plugins.optimizers.tables import StageTables
from tests.plugins.optimizers.problems import LLAMA, QWEN, published, shapes


@pytest.mark.parametrize(("model", "least"), [(LLAMA, 2.8305), (QWEN, 9.4506863)])
def test_published_answers_are_reached(model: ModelSpec, least: float) -> None:
    placement = BeamSearch().place(published(model))
    assert placement.throughput_rps >= least
    assert placement.optimizer == "beam-search"
    assert not any(placement.unused.values())


def test_the_published_width_finds_the_published_pipelines() -> None:
    placement = BeamSearch(top_k=3).place(published(QWEN))
    assert shapes(placement) == [
        [("g6e.xlarge", 1, 16)] * 4,
        [("g6.12xlarge", 4, 24), ("g6.12xlarge", 4, 24), ("g6.12xlarge", 4, 16)],
        [("g5.12xlarge", 4, 38), ("g5.12xlarge", 4, 26)],
    ]


def test_parts_of_instances_serve_more() -> None:
    whole = BeamSearch().place(published(QWEN))
    split = BeamSearch(split_instances=True).place(published(QWEN))
    assert split.throughput_rps > 1.2 * whole.throughput_rps


def test_whole_instances_win_over_the_option() -> None:
    problem = published(QWEN, whole_instances=True)
    split = BeamSearch(split_instances=True).place(problem)
    assert shapes(split) == shapes(BeamSearch().place(problem))


@pytest.mark.parametrize("slo", [Slo(), Slo(latency=30), Slo(ttft=9, tpot=0.3, mode="hard")])
def test_every_pipeline_found_is_scored_as_the_estimator_does(slo: Slo) -> None:
    problem = published(LLAMA, Objective(slo=slo))
    pool = Pool.of(problem, parts)
    limits = Limits(
        available=pool.available,
        budget=inf,
        per_dollar=True,
        slo=slo,
        top_k=3,
        max_stages=8,
        deadline=inf,
    )
    found = search(StageTables(problem.estimator, pool.kinds), pool, limits)
    assert len(found) > 5
    scores = [each.efficiency for each in found]
    assert scores == sorted(scores, reverse=True)
    for each in found:
        estimate = problem.estimator.estimate(each.stages)
        overrun = max(
            estimate.latency / slo.latency - 1 if slo.latency else 0,
            estimate.ttft / slo.ttft - 1 if slo.ttft else 0,
            estimate.tpot / slo.tpot - 1 if slo.tpot else 0,
            0,
        )
        assert slo.mode == "soft" or overrun == 0
        assert each.worth == pytest.approx(estimate.throughput_rps * (1 - overrun))


def test_tables_score_as_the_estimator_does() -> None:
    problem = published(QWEN)
    pool = Pool.of(problem, parts)
    tables = StageTables(problem.estimator, pool.kinds)
    random = np.random.default_rng(0)
    for depth in (1, 2, 3, 6):
        choice = random.integers(len(pool.kinds), size=(50, depth))
        layers = 1 + random.multinomial(64 - depth, np.full(depth, 1 / depth), size=50)
        expected = problem.estimator.scores(pool.kinds, choice, layers)
        for ours, theirs in zip(tables.scores(choice, layers), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def _latencies(problem: Problem, mode: str = "objective") -> list[float]:
    placement = BeamSearch(mode=mode).place(problem)
    return [pipeline.estimate.latency for pipeline in placement.pipelines]


def test_slo_modes() -> None:
    slo = Slo(latency=11.0)
    soft = published(QWEN, Objective(slo=slo))
    hard = published(QWEN, Objective(slo=evolve(slo, mode="hard")))
    assert max(_latencies(published(QWEN))) > 22
    assert 11 < max(_latencies(soft)) < 22
    assert max(_latencies(hard)) <= 11
    assert _latencies(soft, mode="hard_slo") == _latencies(hard)
    assert _latencies(hard, mode="soft_slo") == _latencies(soft)
    assert max(_latencies(hard, mode="only_throughput")) > 22


def test_an_slo_that_nothing_meets_is_said_to_be_one() -> None:
    with pytest.raises(UserError, match="latency limits"):
        BeamSearch().place(published(QWEN, Objective(slo=Slo(latency=0.5, mode="hard"))))


def test_a_budget_is_kept() -> None:
    placement = BeamSearch().place(published(QWEN, Objective(budget=6.0)))
    assert 2.8 < placement.cost_per_hour <= 6.0
    with pytest.raises(UserError, match="budget"):
        BeamSearch().place(published(QWEN, Objective(budget=0.5)))


def test_per_dollar_takes_only_what_is_efficient() -> None:
    placement = BeamSearch().place(published(QWEN, Objective(kind="throughput-per-dollar")))
    assert shapes(placement) == [[("g6e.xlarge", 1, 16)] * 4]


@pytest.mark.parametrize("rate", [0.4, 3.0, 6.5, 9.4])
def test_a_rate_is_reached_for_no_more_than_everything_costs(rate: float) -> None:
    placement = BeamSearch().place(published(QWEN, Objective(kind="cost", rate=rate)))
    assert placement.throughput_rps >= rate * (1 - 1e-9)
    full = BeamSearch().place(published(QWEN))
    assert placement.cost_per_hour <= full.cost_per_hour + 1e-9
    if rate < 1:
        assert placement.cost_per_hour < full.cost_per_hour / 4


def test_a_rate_out_of_reach_is_refused() -> None:
    with pytest.raises(UserError, match="of the demanded 100"):
        BeamSearch().place(published(QWEN, Objective(kind="cost", rate=100)))
    with pytest.raises(UserError, match="needs a rate"):
        BeamSearch().place(published(QWEN, Objective(kind="cost")))


def test_leftovers_join_the_last_pipeline() -> None:
    """The most efficient pipeline leaves one instance over, which alone holds no model."""
    problem = published(LLAMA, counts=(0, 2, 4))
    kept = BeamSearch(merge_leftovers=False).place(problem)
    merged = BeamSearch().place(problem)
    assert kept.unused["g6.12xlarge"] == 1
    assert merged.unused["g6.12xlarge"] == 0
    assert merged.throughput_rps == pytest.approx(1.9951945710714942)


def test_the_time_limit_ends_the_search_with_what_there_is() -> None:
    placement = BeamSearch().place(published(QWEN, time_limit=0.0))
    assert len({tuple(shape) for shape in shapes(placement)}) == 1


def test_free_instances_are_used() -> None:
    problem = published(QWEN)
    free = tuple(evolve(offer, price=0.0) for offer in problem.cluster.offers)
    placement = BeamSearch().place(evolve(problem, cluster=evolve(problem.cluster, offers=free)))
    assert placement.throughput_rps > 7
    assert placement.cost_per_hour == 0
