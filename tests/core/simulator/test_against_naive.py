"""Sums and skips change nothing: every request ends when it does token by token."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.simulator.engine import Engine
from shuntserve_core.simulator.microbatch import Prefill
from shuntserve_core.simulator.pipeline import SimulatedPipeline
from shuntserve_core.simulator.profile import VLLM, VLLM_0_8_1, EngineProfile
from shuntserve_core.traces.workload import Requests
from shuntserve_plugins.balancers.plain import RoundRobin
from tests.core.simulator import naive


class SameCost:
    """A `StepTable` of equal stages."""

    def __init__(self, stages: int) -> None:
        self.stages = stages

    def decode(self, requests: int) -> tuple[list[float], list[float]]:
        return [naive.cost(0, 0, requests, 0)] * self.stages, [1e-6] * self.stages

    def mixed(self, prompts: Prefill, requests: int, context: int) -> list[float]:
        return [naive.cost(prompts.tokens, prompts.ended, requests, context)] * self.stages


lengths = st.lists(st.tuples(st.integers(1, 70), st.integers(1, 40)), min_size=1, max_size=40)


@pytest.mark.parametrize("profile", [VLLM_0_8_1, VLLM], ids=lambda profile: profile.name)
@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths,
    budget=st.sampled_from([16, 50, 200]),
    sequences=st.sampled_from([3, 100]),
    blocks=st.sampled_from([8, 20, 1000]),
    stages=st.integers(1, 3),
)
def test_every_request_ends_at_the_same_time(
    profile: EngineProfile,
    lengths: list[tuple[int, int]],
    budget: int,
    sequences: int,
    blocks: int,
    stages: int,
) -> None:
    """With a scheduler of its own for each micro-batch, where the naive engine is the same."""
    own = evolve(
        profile, step_tokens=budget, sequences=sequences, shared_queue=False, watermark=0.0
    )
    prompts, answers = zip(*lengths, strict=True)
    requests = Requests.of(np.zeros(len(lengths)), prompts, answers)
    pipeline = SimulatedPipeline("p", SameCost(stages), stages, own, blocks * stages, 1.0, 10**6)
    engine = Engine(requests, RoundRobin())
    for batch in pipeline.batches:
        batch.busy = True  # so that all requests are there before the first step
    engine.add(pipeline)
    for batch in pipeline.batches:
        engine.at(0.0, _wake, engine, pipeline, batch)
    engine.run()

    others = [naive.Request(*pair) for pair in lengths]
    batches = [naive.Batch(blocks, own) for _ in range(stages)]
    for number, request in enumerate(others):
        batches[number % stages].waiting.append(request)
    naive.run(batches, stages)
    assert list(engine.record.end) == pytest.approx([r.ended for r in others])
    assert list(engine.record.first) == pytest.approx([r.first for r in others])
    assert pipeline.preemptions == sum(batch.preemptions for batch in batches)


def _wake(engine: Engine, pipeline: SimulatedPipeline, batch: object) -> None:
    batch.busy = False  # type: ignore[attr-defined]
    engine._begin(pipeline, batch)  # type: ignore[arg-type]


@pytest.mark.parametrize("profile", [VLLM_0_8_1, VLLM], ids=lambda profile: profile.name)
@settings(max_examples=60, deadline=None)
@given(lengths=lengths, rate=st.sampled_from([0.5, 5.0, 100.0]), blocks=st.sampled_from([10, 60]))
def test_nothing_is_lost_and_every_block_is_given_back(
    profile: EngineProfile, lengths: list[tuple[int, int]], rate: float, blocks: int
) -> None:
    prompts, answers = zip(*lengths, strict=True)
    requests = Requests.of(np.arange(len(lengths)) / rate, prompts, answers)
    own = evolve(profile, step_tokens=100, sequences=8)
    pipelines = [
        SimulatedPipeline(f"p{i}", SameCost(2), 2, own, blocks * 2, 1.0, 12) for i in range(2)
    ]
    engine = Engine(requests, RoundRobin())
    for pipeline in pipelines:
        engine.add(pipeline)
    engine.run()
    assert min(engine.record.end) > 0
    assert np.all(np.frombuffer(engine.record.first) > requests.arrival)
    assert np.all(np.frombuffer(engine.record.end) >= np.frombuffer(engine.record.first))
    for pipeline in pipelines:
        assert pipeline.cache_used == 0
        assert pipeline.in_flight == 0
        assert pipeline.tokens == 0
        assert all(b.decoding == b.context == 0 and not b.running for b in pipeline.batches)
