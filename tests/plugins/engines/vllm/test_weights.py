"""Where the weights of an engine are, and that what it says of that is so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from shuntserve_plugins.engines.vllm.engine import Vllm
from tests.plugins.engines.embedded.forked import TemplateForTests
from tests.plugins.engines.embedded.processes import Stores
from tests.plugins.engines.vllm.models import StoredModel, launch_of
from tests.plugins.engines.vllm.serving import Forked, greedy_requests, reference, serving, together

pytestmark = pytest.mark.timeout(400)

FLOAT = 4
LINEAR = 8 * 128 * (512 + 256 + 2 * 192 + 192)
"""Of 8 layers: q, k and v in one, o, gate and up in one, down."""
TABLE = 512 * 128
NORMS = (2 * 8 + 1) * 128


@pytest.mark.parametrize(
    ("weights", "lent", "copied"),
    [
        ("lend", LINEAR + 2 * TABLE + NORMS, 0),
        # Packed for the CPU, of which the store's own memory is no more than what the tables need.
        ("auto", 2 * TABLE + NORMS, LINEAR + TABLE),
    ],
)
async def test_what_is_lent_and_what_is_copied(
    weights: str,
    lent: int,
    copied: int,
    llama: StoredModel,
    template: TemplateForTests,
    tmp_path: Path,
) -> None:
    with Stores(tmp_path, 1) as stores:
        launch = launch_of(llama, [(0, 8)], [1], stores)
        with Forked(launch, template, Vllm(weights=weights)) as engine:
            event = await asyncio.to_thread(engine.event, 0, "ready")
    assert event["weights"] == {"lent": lent * FLOAT, "copied": copied * FLOAT}


async def test_lent_weights_compute_what_copies_do(
    llama: StoredModel, template: TemplateForTests, tmp_path: Path
) -> None:
    """The other tests run with copies, as on every CPU."""
    requests = greedy_requests(8, llama.spec.vocab)
    expected = reference(llama)
    with Stores(tmp_path, 3) as stores:
        launch = launch_of(llama, [(0, 5), (5, 8)], [2, 1], stores)
        async with serving(launch, template, Vllm(weights="lend")) as (engine, link):
            outputs = await together(link, requests)
            mapped = [
                sum(
                    part.rss
                    for part in psutil.Process(rank.pid).memory_maps(grouped=False)
                    if "memfd" in part.path
                )
                for rank in engine.ranks
            ]
    assert all(expected.agrees(r, o) for r, o in zip(requests, outputs, strict=True))
    assert min(mapped) > NORMS * FLOAT
