"""What every engine must do, by two stages of unlike degree."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from shuntserve_core.link import LinkClient
from shuntserve_core.testing.engines import EngineContract, generate, running
from shuntserve_core.types.request import EngineLoad, EngineRequest, SamplingParams
from shuntserve_plugins.engines.vllm.engine import Vllm
from tests.plugins.engines.embedded.processes import Stores
from tests.plugins.engines.vllm.models import StoredModel, build, launch_of
from tests.plugins.engines.vllm.serving import PATIENT, greedy_requests, reference, together

pytestmark = pytest.mark.timeout(400)


class TestRagged(EngineContract):
    model: StoredModel

    @contextmanager
    def engine(self) -> Iterator[tuple[str, str]]:
        with TemporaryDirectory() as name, Stores(Path(name), 3) as stores:
            type(self).model = build("llama", Path(name), [1, 2])
            launch = launch_of(self.model, [(0, 5), (5, 8)], [2, 1], stores)
            with running(Vllm(), launch, timeout=300) as address:
                yield address, launch.link_token

    def test_its_tokens_are_those_of_transformers(self) -> None:
        requests = greedy_requests(8, self.model.spec.vocab)
        expected = reference(self.model)

        async def scenario() -> None:
            link = await LinkClient.connect(*self.address, policy=PATIENT)
            await link.activate()
            outputs = await together(link, requests)
            link.close()
            for request, output in zip(requests, outputs, strict=True):
                assert len(output.tokens) == 24
                assert expected.agrees(request, output)

        asyncio.run(scenario())

    def test_it_tells_how_often_prefixes_were_found(self) -> None:
        prompt = [7 + n % 90 for n in range(100)]

        async def scenario() -> EngineLoad:
            link = await LinkClient.connect(*self.address, policy=PATIENT)
            await link.activate()
            before = link.load
            for name in ("first", "second"):
                await generate(link, EngineRequest(name, prompt, SamplingParams(max_tokens=2)))
            async with asyncio.timeout(30):
                while link.load.prefix_queries < before.prefix_queries + 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            link.close()
            return link.load

        load = asyncio.run(scenario())
        assert 64 <= load.prefix_hits < 100
        assert load.preemptions == 0
