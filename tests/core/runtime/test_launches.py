"""How much KV memory engines are told to own."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from shuntserve_core.interfaces.engine import EngineLaunch, RankLaunch
from shuntserve_core.runtime.launches import EngineSettings, on_gpus
from shuntserve_core.types import Estimate, ModelSpec, Pipeline, Stage, StageEstimate
from shuntserve_plugins.engines.simulated import Simulated

MODEL = ModelSpec("llama", 8, 1024, 8, 4, 128, 4096, 32000)
HEAD = 2 * 128 * 2
"""Bytes of one key head's keys and values of one token."""


def kv_bytes_of(plan: Pipeline, by_hand: int | None = None, *, on_gpus: bool = False) -> int:
    settings = EngineSettings(Simulated(), "simulated", MODEL, "", 1000, None, by_hand)
    return settings.kv_bytes_of(plan, on_gpus=on_gpus)


def plan(stages: Sequence[tuple[int, int, float]], blocks: int) -> Pipeline:
    """Stages of (degree, layers, bytes left for KV memory)."""
    parts = tuple(StageEstimate(1, 0.0, 0.0, 0.0, "", {}, room) for _, _, room in stages)
    return Pipeline(
        tuple(Stage("x", degree, layers) for degree, layers, _ in stages),
        Estimate(1.0, 8, blocks, 0.0, 0.0, 0.0, parts),
    )


def launch(kv_bytes: int, stages: Sequence[tuple[int, int]]) -> EngineLaunch:
    ends = [sum(layers for _, layers in stages[: i + 1]) for i in range(len(stages))]
    return EngineLaunch(
        engine_id="e",
        model=MODEL,
        model_dir="",
        weights="",
        weights_model="",
        layers=tuple((end - n, end) for end, (_, n) in zip(ends, stages, strict=True)),
        tensor_parallel=tuple(degree for degree, _ in stages),
        ranks=tuple(
            RankLaunch("node", "host", rank, number, rank, "")
            for number, (degree, _) in enumerate(stages)
            for rank in range(degree)
        ),
        rendezvous="",
        link_token="",
        max_batch=8,
        max_length=1000,
        kv_bytes=kv_bytes,
    )


def test_the_batch_gets_its_blocks_and_the_longest_request_its_tokens() -> None:
    stages = [(2, 6, 0.0), (1, 2, 0.0)]
    assert kv_bytes_of(plan(stages, 1000)) == 6 * 2 * HEAD * 16 * 1000
    assert kv_bytes_of(plan(stages, 1)) >= 6 * 2 * HEAD * 1000


def test_no_gpu_is_given_more_than_it_has_left() -> None:
    """Both stages hold as many tokens: the first needs 12 heads a token, the second 8."""
    stages = [(2, 6, 12e6), (1, 2, 4e6)]
    wanted = kv_bytes_of(plan(stages, 1000))
    assert wanted == 6_000_000, "of which the second stage takes 4"
    ranks = launch(wanted, [(2, 6), (1, 2)])
    assert [ranks.kv_bytes_on(rank) for rank in range(3)] == [6_000_000, 6_000_000, 4_000_000]


def test_a_figure_by_hand_is_cut_down_where_memory_is_a_gpus() -> None:
    """A successor may hold more layers than the pipeline that the figure was chosen for."""
    stages = [(1, 8, 30e6)]
    assert kv_bytes_of(plan(stages, 10), 50_000_000) == 50_000_000
    assert kv_bytes_of(plan(stages, 10), 50_000_000, on_gpus=True) == 30_000_000
    assert kv_bytes_of(plan(stages, 10), 20_000_000, on_gpus=True) == 20_000_000


def test_every_rank_can_hold_as_many_blocks_as_the_neediest() -> None:
    for kv_bytes in (10_000_000, 10_000_001, 12_345_679):
        stages = [(4, 3), (2, 4), (1, 1)]
        ranks = launch(kv_bytes, stages)
        heads = [3 * 1, 4 * 2, 1 * 4]
        blocks = [
            ranks.kv_bytes_on(rank) // (heads[place.stage] * HEAD * 32)
            for rank, place in enumerate(ranks.ranks)
        ]
        assert min(blocks) == blocks[4] == kv_bytes // (8 * HEAD * 32)


def test_nodes_say_whether_their_memory_is_a_gpus() -> None:
    two = Pipeline((Stage("x", 1, 4, "a", (0,)), Stage("x", 1, 4, "b", (1,))), plan([], 1).estimate)
    for device, real in (("cpu", False), ("cuda:1", True)):
        nodes: Any = {
            "a": SimpleNamespace(agent=SimpleNamespace(devices={0: "cpu"})),
            "b": SimpleNamespace(agent=SimpleNamespace(devices={0: "cpu", 1: device})),
        }
        assert on_gpus(two, nodes) == real
    assert not on_gpus(two, dict.fromkeys("ab", SimpleNamespace(agent=None)))  # type: ignore[arg-type]
