"""Whatever the placement, greedy tokens are those of one process, and of transformers.

One that spreads and narrows again, for each family of small models, and a real model whose 9 heads
only 3 divides; `benchmarks/vllm_placements.py` has more.
"""

from __future__ import annotations

import os
from asyncio import gather
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from shuntserve_core.testing.listening import listening
from shuntserve_core.weights.quickstart import make_model_directory
from shuntserve_plugins.engines.vllm.engine import Vllm, WorkerSpec, shares_memory
from tests.plugins.engines.embedded.forked import TemplateForTests
from tests.plugins.engines.embedded.processes import Stores
from tests.plugins.engines.vllm.models import StoredModel, launch_of, stored
from tests.plugins.engines.vllm.serving import (
    greedy_requests,
    queues_of,
    reference,
    serving,
    shared_memory,
    telling,
    together,
)

pytestmark = pytest.mark.timeout(600)


async def _agrees(
    model: StoredModel,
    template: TemplateForTests,
    tmp_path: Path,
    layers: Sequence[tuple[int, int]],
    degrees: Sequence[int],
    tokens: int,
    unpickled: Path,
) -> None:
    """Eight requests at once, beside one of each kind that takes more to say."""
    requests = greedy_requests(8, min(model.spec.vocab, 500), tokens)
    expected = reference(model)
    with Stores(tmp_path, sum(degrees)) as stores:
        async with serving(launch_of(model, layers, degrees, stores), template) as (engine, link):
            outputs, told = await gather(together(link, requests), together(link, telling()))
            shared = shared_memory(engine)
            doors, unix = listening(map(psutil.Process, (rank.pid for rank in engine.ranks)))
            queues = queues_of(engine)
    assert doors == {"127.0.0.1"}  # where the ranks' launch says
    assert not unix
    assert not queues
    assert not unpickled.exists(), unpickled.read_text()[:4000]
    assert not any(output.error for output in told)
    assert len(told[0].logprobs) == 4
    assert len(told[1].prompt_logprobs) == 8
    for request, output in zip(requests, outputs, strict=True):
        assert len(output.tokens) == tokens
        assert expected.agrees(request, output)
    crowded = sum(degrees) > len(os.sched_getaffinity(0))
    if len(set(degrees)) > 1:  # else they are in vLLM's own groups
        assert len(shared) == (0 if crowded else max(degrees))
    assert all(file.endswith("(deleted)") for file in shared), "survives a SIGKILL"


@pytest.mark.parametrize(("cores", "common"), [(8, True), (3, True), (2, False)])
def test_more_ranks_than_cores_share_no_memory(
    cores: int, common: bool, llama: StoredModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would wait for each other in busy loops."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    with Stores(tmp_path, 3) as stores:
        launch = launch_of(llama, [(0, 3), (3, 8)], [1, 2], stores)
    specs = [WorkerSpec(launch, rank, Vllm()) for rank in range(3)]
    assert {shares_memory(spec) for spec in specs} == {common}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
async def test_degrees_1_2_1(
    family: str,
    template: TemplateForTests,
    tmp_path: Path,
    unpickled: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Three uneven stages: a hand-over to more ranks, and one to fewer."""
    model = request.getfixturevalue(family)
    layers = [(0, 2), (2, 6), (6, 8)]
    await _agrees(model, template, tmp_path, layers, [1, 2, 1], 24, unpickled)


@pytest.mark.parametrize(
    ("layers", "degrees"), [([(0, 8)], [2]), ([(0, 3), (3, 8)], [2, 2])], ids=["2", "2-2"]
)
async def test_even_degrees(
    layers: Sequence[tuple[int, int]],
    degrees: Sequence[int],
    llama: StoredModel,
    template: TemplateForTests,
    tmp_path: Path,
    unpickled: Path,
) -> None:
    """In groups that vLLM makes itself, without the queues that it would open in them."""
    await _agrees(llama, template, tmp_path, layers, degrees, 12, unpickled)


async def test_degrees_1_3_of_smollm2(
    template: TemplateForTests, tmp_path: Path, unpickled: Path
) -> None:
    """Stored as float16, used as float32."""
    made = make_model_directory(tmp_path / "SmolLM2-135M")
    model = stored(made, tmp_path, "llama", [1, 3])
    await _agrees(model, template, tmp_path, [(0, 8), (8, 30)], [1, 3], 8, unpickled)
