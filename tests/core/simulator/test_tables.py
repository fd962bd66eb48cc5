"""Tables are what the estimator says, step by step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.interfaces.estimator import Position
from shuntserve_core.interfaces.layer import EngineStep
from shuntserve_core.registry import Registry
from shuntserve_core.simulator.microbatch import Prefill
from shuntserve_core.simulator.profile import MeasuredSteps
from shuntserve_core.simulator.tables import MeasuredTable, PredictedSteps
from shuntserve_core.types import ModelSpec, StageKind, Workload
from shuntserve_plugins.estimators.roofline import Roofline

MODEL = ModelSpec("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256)
STAGES = [
    (StageKind("g5.12xlarge", 4), 30),
    (StageKind("g6e.xlarge", 1), 20),
    (StageKind("g6.12xlarge", 4), 30),
]
BOUND = Roofline(eager=True).bind(MODEL, Workload(763, 232), Registry().instance_types)
TABLE = PredictedSteps(BOUND, STAGES)


def said(step: EngineStep) -> list[float]:
    return [
        BOUND.step_seconds(kind, Position(i == 0, i == 2), layers, step)
        for i, (kind, layers) in enumerate(STAGES)
    ]


@settings(max_examples=60, deadline=None)
@given(requests=st.integers(1, 256), each=st.integers(1, 3000))
def test_decodes(requests: int, each: int) -> None:
    fixed, slope = TABLE.decode(requests)
    context = requests * each
    found = [a + b * context for a, b in zip(fixed, slope, strict=True)]
    step = EngineStep(decodes=requests, decode_context=context)
    assert found == pytest.approx(said(step), rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    prompts=st.lists(st.tuples(st.integers(1, 2048), st.integers(0, 4000)), min_size=1, max_size=4),
    requests=st.integers(0, 200),
    each=st.integers(1, 2000),
)
def test_prompts_with_decodes(prompts: list[tuple[int, int]], requests: int, each: int) -> None:
    tokens = sum(part for part, _ in prompts)
    pairs = sum(part * (before + (part + 1) / 2) for part, before in prompts)
    read = sum(part + before for part, before in prompts)
    found = TABLE.mixed(Prefill(tokens, pairs, read, len(prompts)), requests, requests * each)
    step = EngineStep(tokens, pairs, read, len(prompts), requests, requests * each)
    # Token counts are rounded up to eight, which may reach into the next tile of 128.
    low = said(step)
    high = said(EngineStep(tokens + 7, pairs, read, len(prompts), requests, requests * each))
    for value, least, most in zip(found, low, high, strict=True):
        assert 0.97 * least <= value <= 1.03 * most


def test_measured_steps_stand_for_the_whole_pipeline() -> None:
    table = MeasuredTable(MeasuredSteps(0.01, 0.001, 1e-4, 0.005, 1e-6, 0.02))
    assert table.decode(5) == ([pytest.approx(0.015)], [1e-6])
    mixed = table.mixed(Prefill(100, 0.0, 100, 2), 3, 1000)
    assert mixed == [pytest.approx(0.01 + 0.02 + 0.003 + 0.01 + 0.01 + 0.001)]
