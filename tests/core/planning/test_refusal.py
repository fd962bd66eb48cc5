"""Why there is no pipeline: what is missing, by how much, and the least that would help."""

from __future__ import annotations

import pytest
from attrs import evolve

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.planning.refusal import explain_no_pipeline
from shuntserve_core.types import Cluster, Objective, Slo
from shuntserve_plugins.optimizers.beam_search import BeamSearch
from tests.plugins.optimizers.problems import LLAMA, QWEN, published

LAYER = 855_654_400 * 2 + 2 * 1024 * 2 * 8192
"""Bytes of a layer of Llama-3.1-70B, and of its KV cache for 8,192 tokens."""


def test_missing_layers_are_counted_in_bytes() -> None:
    """Three g6e.xlarge hold 20, 21 and 20 layers: the first embeds, the last computes logits."""
    error = explain_no_pipeline(published(LLAMA, counts=(0, 0, 3)))
    assert "19 of its 80 layers" in error.message
    assert f"{19 * LAYER:,} bytes" in error.message
    assert "more g6e.xlarge" in error.remedy


@pytest.mark.parametrize("counts", [(0, 0, 1), (0, 0, 2), (0, 0, 3), (1, 0, 0), (0, 1, 1)])
def test_the_remedy_helps(counts: tuple[int, int, int]) -> None:
    problem = published(LLAMA, counts=counts)
    with pytest.raises(UserError) as caught:
        BeamSearch().place(problem)
    words = caught.value.remedy.split()
    count, name = int(words[-3]), words[-1]
    more = tuple(
        evolve(offer, count=offer.count + count * (offer.instance.name == name))
        for offer in problem.cluster.offers
    )
    assert BeamSearch().place(_with(problem, more)).pipelines


def _with(problem: Problem, offers: tuple[object, ...]) -> Problem:
    return evolve(problem, cluster=Cluster(offers))


def test_nothing_to_use() -> None:
    assert "no instance" in str(explain_no_pipeline(published(QWEN, counts=(0, 0, 0))))


def test_gpus_without_room_for_one_layer() -> None:
    problem = published(evolve(LLAMA, intermediate=28672 * 64), counts=(0, 0, 4))
    assert "not one layer" in explain_no_pipeline(problem).message


def test_heads_that_do_not_divide() -> None:
    odd = evolve(QWEN, heads=27, kv_heads=9)
    problem = published(odd, counts=(2, 3, 0), whole_instances=True)
    error = explain_no_pipeline(problem)
    assert "27 attention heads do not divide by 4" in error.message
    with pytest.raises(UserError, match="27 attention heads"):
        BeamSearch().place(problem)


def test_limits_that_forbid_every_pipeline() -> None:
    slow = published(QWEN, Objective(slo=Slo(latency=0.1, mode="hard")))
    assert explain_no_pipeline(slow).where == "objective.slo"
    poor = published(QWEN, Objective(budget=0.1))
    assert explain_no_pipeline(poor).where == "objective.budget"
    assert explain_no_pipeline(published(QWEN)).where == "optimizer"
