"""Whatever the placement, greedy tokens are those of one process, and of transformers.

One that spreads and narrows again; `benchmarks/vllm_placements.py` has more.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.engines.embedded.forked import TemplateForTests
from tests.plugins.engines.embedded.processes import Stores
from tests.plugins.engines.vllm.models import StoredModel, launch_of
from tests.plugins.engines.vllm.serving import (
    greedy_requests,
    reference,
    serving,
    together,
)

pytestmark = pytest.mark.timeout(600)


async def test_degrees_1_2_1_of_a_qwen3(
    qwen3: StoredModel, template: TemplateForTests, tmp_path: Path
) -> None:
    """Three uneven stages: a hand-over to more ranks, and one to fewer."""
    requests = greedy_requests(8, qwen3.spec.vocab)
    expected = reference(qwen3)
    with Stores(tmp_path, 4) as stores:
        launch = launch_of(qwen3, [(0, 2), (2, 6), (6, 8)], [1, 2, 1], stores)
        async with serving(launch, template) as (_, link):
            outputs = await together(link, requests)
    for request, output in zip(requests, outputs, strict=True):
        assert len(output.tokens) == 24
        assert expected.agrees(request, output)
