"""Whether vLLM starts on cards whose memory the tensor store has filled.

vLLM's own check, with the numbers of real cards: nothing of it needs a GPU.
"""

from __future__ import annotations

import warnings

import pytest
from attrs import frozen

from shuntserve_core.errors import UserError
from shuntserve_core.registry import Registry
from shuntserve_core.types import ModelSpec, StageKind, Workload
from shuntserve_plugins.engines.vllm.room import Room, utilization
from shuntserve_plugins.estimators.roofline import Roofline

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing vLLM warns of is not ours
    from vllm.config import CacheConfig
    from vllm.utils.mem_utils import MemorySnapshot
    from vllm.v1.worker.utils import request_memory

GIB = 1 << 30
CONTEXT = 0.55 * GIB
"""What a process takes before it computes anything, more than the estimator's 0.39 GB."""
SMALL = ModelSpec("llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256)
MIDDLE = ModelSpec("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256)
LARGE = ModelSpec("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256)


@frozen
class Card:
    name: str
    gib: float
    model: ModelSpec
    pipeline: tuple[tuple[str, int, int], ...]
    """(instance type, degree, layers) of each stage."""


CARDS = [
    Card("24 GB, small", 22.3, SMALL, (("g6.xlarge", 1, 16),)),
    Card("24 GB, large", 22.3, LARGE, (("g5.48xlarge", 8, 40), ("g5.48xlarge", 8, 40))),
    Card("48 GB, small", 44.5, SMALL, (("g6e.xlarge", 1, 16),)),
    Card("48 GB, large", 44.5, LARGE, (("g6e.12xlarge", 4, 80),)),
    Card("80 GB, middle", 79.1, MIDDLE, (("p5.48xlarge", 1, 32),)),
    Card("80 GB, large", 79.1, LARGE, (("p5.48xlarge", 4, 80),)),
]


def snapshot(free: float, total: float) -> MemorySnapshot:
    return MemorySnapshot(
        free_memory=int(free), total_memory=int(total), device="cuda:0", auto_measure=False
    )


def asks(free: float, total: float, share: float, kv_bytes: int) -> int:
    """vLLM's check with this share of the card, KV memory being given."""
    cache = CacheConfig(gpu_memory_utilization=share)
    cache.kv_cache_memory_bytes = kv_bytes
    return request_memory(snapshot(free, total), cache)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_two_engines_start_beside_the_stores_weights_and_kv_memory(card: Card) -> None:
    bound = Roofline().bind(card.model, Workload(763, 232, 8192), Registry().instance_types)
    stages = [(StageKind(name, t), layers) for name, t, layers in card.pipeline]
    estimate = bound.estimate(stages)
    assert estimate.feasible, estimate.reason
    total = card.gib * GIB
    for (_, t, _), part in zip(card.pipeline, estimate.stages, strict=True):
        weights, kv, working = part.memory_bytes / t, part.kv_room_bytes, part.working_bytes
        ours = utilization(int(working), int(total))
        # The first engine: weights are loaded, KV memory is not yet there.
        free = total - CONTEXT - weights - CONTEXT
        assert asks(free, total, ours, int(kv)) <= free
        # The second: all KV memory is there, and the first engine has computed its largest step.
        free -= kv + working + CONTEXT
        assert working <= free, "and it has room for what it asked for"
        assert asks(free, total, ours, int(kv)) == pytest.approx(working, abs=2)
        with pytest.raises(ValueError, match="Free memory on device"):
            asks(free, total, CacheConfig().gpu_memory_utilization, int(kv))


def test_vllms_own_share_stops_even_the_first_engine_of_a_middling_model() -> None:
    total, weights = 79.1 * GIB, 15 * GIB
    free = total - CONTEXT - weights - CONTEXT
    with pytest.raises(ValueError, match="Free memory on device"):
        asks(free, total, CacheConfig().gpu_memory_utilization, GIB)


def test_a_card_without_room_is_refused_before_anything_is_computed() -> None:
    total, working = 22.3 * GIB, int(1.2 * GIB)
    share = utilization(working, int(total))
    with pytest.raises(ValueError, match="Free memory on device"):
        asks(1.1 * GIB, total, share, GIB)
    room = Room("node#0, GPU 1", working)
    refusal = str(room.refuse_start(int(1.1 * GIB)))
    assert "node#0, GPU 1" in refusal
    assert "1.10 GiB are free" in refusal
    assert "1.20 GiB" in refusal


def test_what_was_measured_is_held_against_the_plan() -> None:
    room = Room("node#0, GPU 1", GIB)
    assert room.judge(GIB, 10 * GIB, 10 * GIB) == ""
    assert "1.50 GiB" in room.judge(3 * GIB // 2, 10 * GIB, 0)
    assert Room("node#0, GPU 1", 0).judge(3 * GIB, 10 * GIB, 0) == ""
    with pytest.raises(UserError, match=r"5\.00 GiB of KV memory do not fit into the 4\.00"):
        room.judge(GIB, 4 * GIB, 5 * GIB)


def test_nothing_planned_still_gives_vllm_a_share_that_it_accepts() -> None:
    assert CacheConfig(gpu_memory_utilization=utilization(0, 79 * GIB)).gpu_memory_utilization > 0
    assert utilization(90 * GIB, 79 * GIB) == 1.0
