"""What every engine must do, by two stages of unlike degree."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from shuntserve_core.link import LinkClient
from shuntserve_core.testing.engines import EngineContract, generate, running
from shuntserve_core.text import load_tokenizer
from shuntserve_core.types.request import EngineRequest, SamplingParams
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

    def decode(self, tokens: Sequence[int]) -> str:
        return load_tokenizer(str(self.model.directory)).decode(tokens)

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

    def test_prefixes_are_found_by_requests_of_the_same_salt_alone(self) -> None:
        """And how often they are is told."""
        prompt = [7 + n % 90 for n in range(100)]
        salts = ("", "", "one", "two", "one")

        async def hits() -> list[int]:
            link = await LinkClient.connect(*self.address, policy=PATIENT)
            await link.activate()
            found = []
            await generate(link, EngineRequest("first", prompt[:9], SamplingParams(max_tokens=2)))
            while not link.load.tokens:  # noqa: ASYNC110 - it comes by heartbeat
                await asyncio.sleep(0.05)
            for number, salt in enumerate(salts):
                before, name = link.load, f"salted {number}"
                request = EngineRequest(name, prompt, SamplingParams(max_tokens=2), (), salt)
                await generate(link, request)
                async with asyncio.timeout(30):
                    while link.load.prefix_queries < before.prefix_queries + 100:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                found.append(link.load.prefix_hits - before.prefix_hits)
                assert link.load.preemptions == 0
            link.close()
            return found

        # What a request does not find is computed as if nobody had ever sent it: no clock can
        # tell a prompt that another tenant sent from a new one.
        first, again, one, two, one_again = asyncio.run(hits())
        assert first == one == two == 0
        assert again == one_again
        assert 64 <= again < 100
