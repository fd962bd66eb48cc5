"""What cannot run is refused before any process is started, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.engine import EngineLaunch, RankLaunch
from shuntserve_core.types import ModelSpec
from shuntserve_plugins.engines.vllm.engine import Vllm, longest

MODEL = ModelSpec("base/model", 8, 128, 8, 4, 32, 192, 500, dtype="float32")
PLACES = [(0, 0), (0, 1), (1, 0)]
LAUNCH = EngineLaunch(
    engine_id="engine",
    model=MODEL,
    model_dir=str(Path()),
    weights="weights",
    weights_model=MODEL.name,
    layers=((0, 5), (5, 8)),
    tensor_parallel=(2, 1),
    ranks=tuple(RankLaunch(f"node-{s}", "127.0.0.1", t, s, t, "socket") for s, t in PLACES),
    rendezvous="127.0.0.1:1",
    link_token="a token for tests",
    max_batch=8,
    max_length=512,
    kv_bytes=32 << 20,
)


def test_a_process_for_each_rank_on_its_node() -> None:
    commands = Vllm(environment={"NCCL_DEBUG": "INFO"}).workers(LAUNCH)
    assert [(command.node, command.ranks) for command in commands] == [
        ("node-0", (0,)),
        ("node-0", (1,)),
        ("node-1", (2,)),
    ]
    for command in commands:
        assert LAUNCH.link_token not in " ".join(command.argv)
        assert command.environment["VLLM_PP_LAYER_PARTITION"] == "5,3"
        assert command.environment["NCCL_DEBUG"] == "INFO"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tensor_parallel": (3, 1)}, "8 attention heads do not divide by 3"),
        ({"tensor_parallel": (16, 1)}, "8 attention heads do not divide by 16"),
        ({"model": evolve(MODEL, heads=9, kv_heads=9)}, "9 attention heads do not divide by 2"),
        ({"model": evolve(MODEL, intermediate=193)}, "MLP width 193 does not divide by 2"),
        (
            {"tensor_parallel": (3, 1), "model": evolve(MODEL, heads=9, kv_heads=3)},
            "padded vocabulary of 512 does not divide by 3",
        ),
        ({"model": evolve(MODEL, family="mixtral")}, "family 'mixtral'"),
        ({"layers": ((0, 8), (8, 8))}, "stage 1 has no layers"),
        ({"kv_bytes": 10_000}, "10000 bytes of KV memory hold less than 64 tokens"),
        ({"ranks": (evolve(LAUNCH.ranks[0], node="far"), *LAUNCH.ranks[1:])}, "far, node-0"),
    ],
)
def test_what_cannot_run(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Vllm().workers(evolve(LAUNCH, **changes))


def test_the_longest_sequence_fits_every_rank() -> None:
    """Stage 0 has 5 layers and half of the 4 KV heads, stage 1 has 3 and all of them."""
    block = 3 * 2 * 4 * 32 * 4 * 32
    assert longest(evolve(LAUNCH, kv_bytes=11 * block), 32) == 10 * 32
    assert longest(LAUNCH, 32) == 512
    assert longest(evolve(LAUNCH, model=evolve(MODEL, max_positions=100)), 32) == 100
