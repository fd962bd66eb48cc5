"""The published model gives the published answers."""

from __future__ import annotations

import numpy as np
import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.estimator import Position
from shuntserve_core.registry import Registry
from shuntserve_core.types import ModelSpec, StageKind, Workload
from shuntserve_plugins.estimators.paper import Paper, PaperModel

LLAMA = ModelSpec("llama", 80, 8192, 64, 8, 128, 28672, 128256)
QWEN = ModelSpec("qwen", 64, 5120, 64, 8, 128, 25600, 151936, family="qwen3")
WORKLOAD = Workload(763, 232, 8192)
CATALOG = Registry().instance_types
G5, G6, G6E = (
    StageKind("g5.12xlarge", 4),
    StageKind("g6.12xlarge", 4),
    StageKind("g6e.xlarge", 1),
)

Stages = list[tuple[StageKind, int]]

KNOWN: list[tuple[ModelSpec, Stages, float, int]] = [
    (LLAMA, [(G6, 14)] * 2 + [(G6E, 13)] * 4, 1.9951945710714942, 15173),
    (LLAMA, [(G5, 26), (G5, 26), (G6, 28)], 0.8353186979764528, 13867),
    (LLAMA, [(G6E, 15), *[(G6E, 16)] * 3, (G6, 17)], 1.2478586562854999, 9452),
    (LLAMA, [(G6, 27), (G6, 27), (G6, 26)], 1.208135896940413, 15360),
    (LLAMA, [(G6E, 20)] * 4, 0.21528408197213106, 684),
    (QWEN, [(G6E, 16)] * 4, 5.865183789888193, 19278),
    (QWEN, [(G6, 24), (G6, 24), (G6, 16)], 2.6277697930875203, 32213),
    (QWEN, [(G5, 64)], 0.46555458682983175, 2363),
    (QWEN, [(G5, 38), (G5, 26)], 0.9577327215324811, 14862),
]


def bound(model: ModelSpec) -> PaperModel:
    return Paper().bind(model, WORKLOAD, CATALOG)


@pytest.mark.parametrize(("model", "stages", "throughput", "blocks"), KNOWN)
def test_known_answers(model: ModelSpec, stages: Stages, throughput: float, blocks: int) -> None:
    estimate = bound(model).estimate(stages)
    assert estimate.throughput_rps == pytest.approx(throughput, rel=1e-9)
    assert estimate.kv_blocks == blocks


@pytest.mark.parametrize(
    ("model", "stages", "throughput"),
    [
        (LLAMA, [(G6E, 13)] * 4 + [(G6, 14)] * 2, 1.62),
        (QWEN, [(G5, 26), (G5, 38)], 0.733),
        (QWEN, [(StageKind("g5.12xlarge", 1), 8)] * 8, 3.70),
    ],
)
def test_order_and_degree_matter(model: ModelSpec, stages: Stages, throughput: float) -> None:
    assert bound(model).estimate(stages).throughput_rps == pytest.approx(throughput, abs=5e-3)


def test_breakdown_adds_up() -> None:
    estimate = bound(LLAMA).estimate([(G5, 26), (G5, 26), (G6, 28)])
    for stage in estimate.stages:
        busy = stage.prefill_seconds + stage.decode_seconds
        assert sum(stage.breakdown.values()) == pytest.approx(busy, rel=1e-12)
        assert stage.batch_limit >= estimate.batch
    assert estimate.stages[0].bound == "communication"


def test_scores_follow_from_the_parts() -> None:
    """What exact optimizers rely on, for pipelines of every depth up to 5."""
    model = bound(QWEN)
    kinds = [G5, G6, G6E, StageKind("g5.12xlarge", 1), StageKind("g6.12xlarge", 2)]
    random = np.random.default_rng(0)
    for depth in range(1, 6):
        choice = random.integers(len(kinds), size=(40, depth))
        layers = 1 + random.multinomial(64 - depth, np.full(depth, 1 / depth), size=40)
        scores = model.scores(kinds, choice, layers)
        for row in range(40):
            positions = [Position(p == 0, p == depth - 1) for p in range(depth)]
            chosen = [kinds[k] for k in choice[row]]
            limits = [
                model.batch_limit(kind, position)[n]
                for kind, position, n in zip(chosen, positions, layers[row], strict=True)
            ]
            assert scores.batch[row] == min(limits)
            if not min(limits):
                assert scores.throughput_rps[row] == 0
                assert np.isinf(scores.latency[row])
                continue
            batch = np.array([min(limits)])
            works = [
                model.stage_work(kind, position, depth, batch)
                for kind, position in zip(chosen, positions, strict=True)
            ]
            prefill = np.max(
                [
                    w.prefill_layer * n + w.prefill_fixed
                    for w, n in zip(works, layers[row], strict=True)
                ],
                axis=0,
            )
            decode = np.max(
                [
                    w.decode_layer * n + w.decode_fixed
                    for w, n in zip(works, layers[row], strict=True)
                ],
                axis=0,
            )
            period = model.period(batch, depth, prefill, decode)
            assert scores.throughput_rps[row] == pytest.approx(batch[0] / period[0], rel=1e-12)
            ttft, tpot = model.latencies(batch, depth, prefill, decode)
            assert (scores.ttft[row], scores.tpot[row]) == pytest.approx((ttft[0], tpot[0]))
            alone = [
                model.alone(kind, position, depth)
                for kind, position in zip(chosen, positions, strict=True)
            ]
            latency = sum(a * n + b for (a, b), n in zip(alone, layers[row], strict=True))
            assert scores.latency[row] == pytest.approx(latency)


def test_batch_limit_never_grows_with_layers() -> None:
    limit = bound(LLAMA).batch_limit(G6E, Position(first=True, last=False))
    assert limit.shape == (81,)
    assert limit[0] == limit[1]
    assert (np.diff(limit) <= 0).all()


def test_an_infeasible_pipeline_says_why() -> None:
    full = bound(LLAMA).estimate([(G6E, 80)])
    assert not full.feasible
    assert "bytes more" in full.reason
    odd = bound(LLAMA).estimate([(StageKind("g5.12xlarge", 3), 80)])
    assert "do not divide by 3" in odd.reason


def test_a_quantised_model_is_refused() -> None:
    quantised = ModelSpec("q", 8, 512, 8, 8, 64, 1024, 1000, weight_dtype="fp8")
    with pytest.raises(UserError, match="one element size"):
        Paper().bind(quantised, WORKLOAD, CATALOG)
