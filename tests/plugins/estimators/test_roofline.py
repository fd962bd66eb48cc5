"""The roofline as a model: what must grow, what must be conserved, what its options do."""

from __future__ import annotations

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.interfaces.estimator import Position
from shuntserve_core.interfaces.layer import EngineStep
from shuntserve_core.registry import Registry
from shuntserve_core.types import ModelSpec, StageKind, Workload
from shuntserve_plugins.estimators.roofline import Roofline
from shuntserve_plugins.estimators.roofline.lengths import Lengths
from shuntserve_plugins.estimators.roofline.model import RooflineModel
from shuntserve_plugins.estimators.roofline.steps import Steps, mixed, separate, stalled

CATALOG = Registry().instance_types
LLAMA = ModelSpec("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256)
QWEN = ModelSpec("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936)
WORKLOAD = Workload(763, 232, 8192)
ONE = {"L4": "g6.xlarge", "A10G": "g5.xlarge", "T4": "g4dn.xlarge", "V100": "p3.2xlarge"}
BOTH = Position(True, True)

tokens = st.integers(1, 20_000)
kinds = st.sampled_from(
    [StageKind(name, t) for name in ("g6.48xlarge", "p4d.24xlarge") for t in (1, 2, 4, 8)]
)


def bound(
    model: ModelSpec = LLAMA, workload: Workload = WORKLOAD, **options: object
) -> RooflineModel:
    return Roofline(**options).bind(model, workload, CATALOG)  # type: ignore[arg-type]


def stage(gpu: str) -> StageKind:
    return StageKind(ONE[gpu], 1)


@settings(max_examples=60, deadline=None)
@given(kinds, tokens, st.integers(1, 2_000))
def test_more_tokens_take_longer(kind: StageKind, few: int, more: int) -> None:
    estimator = bound()
    assert (
        estimator.prefill_layer(kind, few).seconds
        <= estimator.prefill_layer(kind, few + more).seconds
    )


@settings(max_examples=60, deadline=None)
@given(kinds, st.integers(1, 2_000), st.integers(0, 8_000), st.integers(1, 500))
def test_more_requests_or_context_take_longer(
    kind: StageKind, batch: int, context: int, more: int
) -> None:
    estimator = bound()
    least = estimator.decode_layer(kind, batch, context).seconds
    assert least <= estimator.decode_layer(kind, batch + more, context).seconds
    assert least < estimator.decode_layer(kind, batch, context + more).seconds


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 1000), st.floats(1, 500), st.integers(16, 8192))
def test_steps_compute_every_token_once(s: int, o: int, slots: float, budget: int) -> None:
    lengths = Lengths.of(Workload(s, o), budget)
    for steps in (
        mixed(lengths, np.array(slots), budget),
        separate(lengths, np.array(slots), 8192),
    ):
        done = steps.prefill * steps.prefill_tokens + steps.decode * steps.decode_tokens
        # A decode step of less than one request on average is rounded up to one.
        assert done == pytest.approx(slots * (s + o - 1), rel=1e-6, abs=float(steps.length))
        assert steps.prefill <= steps.length * (1 + 1e-9)
        assert min(steps) >= 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 1000), st.floats(1, 500), st.integers(16, 8192))
def test_no_step_exceeds_the_budget(s: int, o: int, slots: float, budget: int) -> None:
    steps = mixed(Lengths.of(Workload(s, o), budget), np.array(slots), budget)
    assert steps.prefill_tokens <= budget * (1 + 1e-6)


def test_tensor_parallelism_over_pcie_is_slow() -> None:
    """Eight stages on single A10Gs do more than twice what two stages of four do."""
    estimator = bound(QWEN)
    four = estimator.estimate(
        [(StageKind("g5.12xlarge", 4), 38), (StageKind("g5.12xlarge", 4), 26)]
    )
    single = estimator.estimate([(StageKind("g5.12xlarge", 1), 8)] * 8)
    assert single.throughput_rps > 2 * four.throughput_rps
    assert {part.bound for part in four.stages} == {"communication"}
    assert "all-reduce" not in {
        name for part in single.stages for name, s in part.breakdown.items() if s > 0
    }


def test_latency_counts_in_decode_over_pcie() -> None:
    """One token over eight L4s: two all-reduces of 0.145 ms a layer, which bandwidth is not."""
    time = bound().decode_layer(StageKind("g6.48xlarge", 8), 1, 1)
    assert time.breakdown["all-reduce"] == pytest.approx(2 * 0.145e-3, rel=0.1)


def test_nvlink_is_faster_than_pcie() -> None:
    estimator = bound()
    pcie = estimator.decode_layer(StageKind("g6.48xlarge", 8), 64, 1).breakdown["all-reduce"]
    nvlink = estimator.decode_layer(StageKind("p4d.24xlarge", 8), 64, 1).breakdown["all-reduce"]
    assert nvlink < pcie / 4


def test_bounds_are_named() -> None:
    estimator = bound()
    assert estimator.decode_layer(stage("L4"), 1, 1).bound == "memory bandwidth"
    assert estimator.prefill_layer(stage("L4"), 4000).bound == "compute"
    assert estimator.prefill_layer(StageKind("g5.48xlarge", 8), 4000).bound == "communication"
    tiny = ModelSpec("tiny", 4, 64, 4, 4, 16, 128, 1000)
    assert bound(tiny).decode_layer(stage("L4"), 1, 1).bound == "overhead"


def test_grouped_queries_read_less_cache() -> None:
    everyone = evolve(LLAMA, kv_heads=64)
    grouped = bound().decode_layer(stage("L4"), 100, 1000).breakdown["decode attention"]
    full = bound(everyone).decode_layer(stage("L4"), 100, 1000).breakdown["decode attention"]
    assert full == pytest.approx(8 * grouped, rel=0.05)


def test_kv_heads_are_copied_beyond_their_number() -> None:
    """Sixteen GPUs hold eight heads twice: no more cache than on eight, and as long to read."""
    narrow = evolve(LLAMA, kv_heads=4)
    estimator = bound(narrow)
    four, eight = (
        estimator.decode_layer(StageKind("g6.48xlarge", t), 8, 999).breakdown["decode attention"]
        for t in (4, 8)
    )
    assert four == pytest.approx(eight, rel=0.01)


def test_copies_that_engines_hold_take_from_the_cache() -> None:
    """Of float16 weights, in the float32 that is computed in: two for each that is stored."""
    model = evolve(LLAMA, weight_dtype="float16", dtype="float32", kv_dtype="float32")
    layers = np.array([0, 10])
    plain = bound(model)._memory.weights(4, Position(False, False), layers)
    copied = bound(model, weight_copies=1)._memory.weights(4, Position(False, False), layers)
    assert copied[1] == pytest.approx(5 * plain[1])
    table = bound(model)._memory.weights(4, BOTH, layers)[0]
    assert bound(model, weight_copies=1)._memory.weights(4, BOTH, layers)[0] == 3 * table
    kind = StageKind("p4d.24xlarge", 8)
    without, with_copies = (
        bound(weight_copies=copies).batch_limit(kind, BOTH)[80] for copies in (0, 1)
    )
    assert with_copies < without


@pytest.mark.parametrize(("dtype", "share"), [("fp8", 0.5), ("int8", 0.5), ("int4", 0.25)])
def test_quantised_weights_stream_faster(dtype: str, share: float) -> None:
    half = bound().decode_layer(stage("L4"), 1, 1).breakdown
    small = bound(evolve(LLAMA, weight_dtype=dtype)).decode_layer(stage("L4"), 1, 1).breakdown
    for name in ("qkv", "o", "gate-up", "down"):
        assert small[name] == pytest.approx(share * half[name], rel=0.02)


def test_eight_bit_weights_compute_faster_where_the_gpu_can() -> None:
    for gpu, factor in (("L4", 2), ("A10G", 1)):
        half = bound().prefill_layer(stage(gpu), 4096).breakdown["down"]
        fp8 = bound(evolve(LLAMA, weight_dtype="fp8")).prefill_layer(stage(gpu), 4096)
        assert fp8.breakdown["down"] == pytest.approx(half / factor, rel=0.02)


def test_a_small_cache_type_makes_room_and_saves_time() -> None:
    kind = StageKind("g6e.xlarge", 1)
    full, small = bound(max_num_seqs=9999), bound(evolve(LLAMA, kv_dtype="fp8"), max_num_seqs=9999)
    middle = Position(False, False)
    limits = [int(each.batch_limit(kind, middle)[13]) for each in (full, small)]
    assert limits[1] == pytest.approx(2 * limits[0], abs=2)
    times = [
        each.decode_layer(kind, 64, 2000).breakdown["decode attention"] for each in (full, small)
    ]
    assert times[1] == pytest.approx(times[0] / 2, rel=0.05)


def test_head_dim_is_the_models_own() -> None:
    """Qwen3-32B has 64 heads of 128 with a hidden size of 5,120: the O projection is H·Hq."""
    narrow = evolve(QWEN, head_dim=80)
    wide, thin = (bound(m).decode_layer(stage("L4"), 1, 1).breakdown["o"] for m in (QWEN, narrow))
    assert wide == pytest.approx(128 / 80 * thin, rel=0.02)


def test_logits_are_for_the_tokens_that_need_them() -> None:
    """A longer prompt costs the output table nothing, as long as the steps stay the same."""
    kind, batch = StageKind("g6e.xlarge", 1), np.array([8])
    fixed = [
        bound(workload=Workload(s, 100), max_num_batched_tokens=8192)
        .stage_work(kind, BOTH, 1, batch)
        .prefill_fixed[0]
        for s in (500, 2000)
    ]
    assert fixed[1] == pytest.approx(fixed[0], rel=0.01)


def test_a_request_stays_for_one_turnover() -> None:
    """Little's law: TTFT and all TPOTs make up the time in which every slot is used once."""
    for chunked in (True, False):
        estimator = bound(QWEN, chunked_prefill=chunked)
        estimate = estimator.estimate([(StageKind("g6e.xlarge", 1), 16)] * 4)
        stay = estimate.ttft + (WORKLOAD.output_tokens - 1) * estimate.tpot
        assert estimate.batch / estimate.throughput_rps == pytest.approx(stay, rel=1e-9)


def test_sampled_lengths_count_beyond_their_means() -> None:
    """Long prompts with long answers hold more cache and read more of it than averages say."""
    sample = ((100, 50), (1900, 450)) * 50
    even, mixed_lengths = Workload(1000, 250), Workload(1000, 250, lengths=sample)
    one, two = Lengths.of(even, 2048), Lengths.of(mixed_lengths, 2048)
    assert (one.prompt, one.decode_steps) == (two.prompt, two.decode_steps)
    assert two.prompt_pairs > 1.5 * one.prompt_pairs
    assert two.decode_context > 1.5 * one.decode_context
    assert two.occupancy > 1.5 * one.occupancy


def test_occupancy_is_what_a_simulated_slot_holds() -> None:
    generator = np.random.default_rng(3)
    sample = tuple(
        (int(s), int(o))
        for s, o in zip(
            generator.integers(1, 3000, 50), generator.integers(1, 400, 50), strict=True
        )
    )
    held = []
    for s, o in sample:
        held += [min(end, s) for end in range(512, s + 512, 512)]
        held += [s + k for k in range(1, o)]
    lengths = Lengths.of(Workload(1, 1, lengths=sample), 512)
    assert lengths.occupancy == pytest.approx(np.mean(held))


def test_options_of_the_engine_limit_the_batch() -> None:
    stages = [(StageKind("g6e.xlarge", 1), 16)] * 4
    assert bound(QWEN, max_num_seqs=17).estimate(stages).batch == 17
    less = bound(QWEN, gpu_memory_utilization=0.6, max_num_seqs=1024).estimate(stages)
    assert 0 < less.batch < bound(QWEN, max_num_seqs=1024).estimate(stages).batch


def test_memory_is_left_for_two_engines_and_the_store() -> None:
    """Term by term: three contexts, and each engine's communicators, steps and sampling."""
    two, one = bound(), bound(engines_per_gpu=1)
    gpu = CATALOG["g6.48xlarge"].gpu
    for position in (Position(True, False), Position(False, False), Position(False, True)):
        layers = np.array([8])
        rooms = [float(each._memory.for_cache(gpu, 8, position, layers)[0]) for each in (two, one)]
        neighbours = (not position.first) + (not position.last)
        engine = 0.39e9 + (1 + neighbours) * 0.1e9 + two._memory.working(8, position, 0)
        assert rooms[1] - rooms[0] == pytest.approx(engine)
        weights = float(one._memory.weights(8, position, layers)[0])
        assert 0.9 * gpu.memory_bytes - weights - rooms[1] == pytest.approx(0.39e9 + engine)
    serving = two._memory.working(1, BOTH, 10) - two._memory.working(1, BOTH, 0)
    assert one._memory.request_bytes(BOTH) == pytest.approx(serving / 10)
    standby = LLAMA.vocab * (2 + 4 + 20)
    assert two._memory.request_bytes(BOTH) == pytest.approx(serving / 10 + standby)
    assert two._memory.request_bytes(Position(True, False)) == 0


def test_what_is_left_holds_the_batch_and_a_figure_by_hand_replaces_the_formula() -> None:
    stages = [(StageKind("g6e.xlarge", 1), 20)] * 4
    estimate = bound().estimate(stages)
    token = 2 * LLAMA.kv_size * 2 * 20
    for part in estimate.stages:
        assert part.kv_room_bytes >= 16 * estimate.kv_blocks * token
        assert 0 < part.working_bytes < 2e9
    by_hand = bound(runtime_bytes=0.0).estimate(stages)
    assert by_hand.batch > estimate.batch
    assert by_hand.stages[0].kv_room_bytes - estimate.stages[0].kv_room_bytes > 2 * 0.39e9


def test_the_longest_request_must_fit() -> None:
    estimate = bound(workload=Workload(763, 232, 10_000_000)).estimate(
        [(StageKind("g6e.xlarge", 1), 20)] * 4
    )
    assert not estimate.feasible
    assert "stage 1 (g6e.xlarge/1): 20 layers need" in estimate.reason


def test_eager_launches_put_a_floor_under_small_layers() -> None:
    small = ModelSpec("small", 4, 512, 8, 8, 64, 1024, 1000)
    time = bound(small, eager=True).decode_layer(stage("L4"), 1, 1)
    assert time.seconds == pytest.approx(0.25e-3, rel=0.05)
    large = [bound(eager=eager).decode_layer(stage("L4"), 1, 1).seconds for eager in (True, False)]
    assert large[0] == large[1]


def test_larger_steps_trade_token_time_for_throughput() -> None:
    stages = [(StageKind("g6e.xlarge", 1), 16)] * 4
    busy = Workload(3000, 30)
    small, large = (
        bound(QWEN, busy, max_num_batched_tokens=n).estimate(stages) for n in (128, 8192)
    )
    assert large.throughput_rps > small.throughput_rps
    assert large.tpot > small.tpot


def test_weights_are_counted_on_every_gpu() -> None:
    estimate = bound().estimate([(StageKind("p4d.24xlarge", 8), 80)])
    assert estimate.stages[0].memory_bytes == pytest.approx(2 * LLAMA.parameters, rel=1e-3)
    tied = bound(evolve(LLAMA, tied_embeddings=True)).estimate([(StageKind("p4d.24xlarge", 8), 80)])
    table = 2 * LLAMA.vocab * LLAMA.hidden
    saved = estimate.stages[0].memory_bytes - tied.stages[0].memory_bytes
    assert saved == pytest.approx(table)


def test_the_steps_of_a_request_that_is_alone_make_up_its_latency() -> None:
    estimator = bound(workload=Workload(100, 5), step_overhead=0.0, sequence_overhead=0.0)
    kind = StageKind("g6e.xlarge", 1)
    stages = [(kind, Position(n == 0, n == 3), 20) for n in range(4)]
    steps = [EngineStep(100, 5050.0, 100.0, 1)]
    steps += [EngineStep(decodes=1, decode_context=100.0 + k) for k in range(1, 5)]
    seconds = sum(estimator.step_seconds(*where, step) for step in steps for where in stages)
    estimate = estimator.estimate([(kind, 20)] * 4)
    assert seconds == pytest.approx(estimate.latency, rel=1e-9)


def test_rounds_wait_for_their_heaviest_step() -> None:
    """Drawn at random: a round is heavy if any of its micro-batches is."""
    generator = np.random.default_rng(5)
    heavy = generator.random((20_000, 6)) < 0.2
    waiting = (heavy.any(axis=1)[:, None] & ~heavy).sum() / 6
    steps = Steps(4_000, 500, 1, 16_000, 50, 20_000)
    assert stalled(steps, 6) == pytest.approx(waiting, rel=0.02)
    assert stalled(steps, 1) == pytest.approx(0, abs=1e-6)


def test_smaller_chunks_shrink_the_bubbles_of_deep_pipelines() -> None:
    stages = [(StageKind("g5.12xlarge", 1), 8)] * 8
    coarse, fine = (bound(QWEN, max_num_batched_tokens=n).estimate(stages) for n in (2048, 256))
    bubble = [e.stages[3].breakdown["bubble"] / e.stages[3].prefill_seconds for e in (coarse, fine)]
    assert 0 < bubble[1] < bubble[0]
