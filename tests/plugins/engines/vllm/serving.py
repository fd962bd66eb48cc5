"""A running engine, and what it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import evolve

from shuntserve_core.interfaces.engine import EngineLaunch
from shuntserve_core.link import LinkClient
from shuntserve_core.link.connection import LinkPolicy
from shuntserve_core.testing.engines import generate
from shuntserve_core.types.request import EngineRequest, SamplingParams, StepOutput
from shuntserve_plugins.engines.vllm.engine import Vllm
from tests.plugins.engines.embedded.forked import TemplateForTests
from tests.plugins.engines.embedded.models import greedy_of
from tests.plugins.engines.embedded.processes import TOKEN, EngineProcesses
from tests.plugins.engines.vllm.models import StoredModel

# Tests share their machine with others: what is tested is that the engine answers, not how soon.
PATIENT = LinkPolicy(missed=100)


class Forked(EngineProcesses):
    """Every rank of an engine, forked from a template that has imported vLLM."""

    def __init__(
        self, launch: EngineLaunch, template: TemplateForTests, options: Vllm | None = None
    ) -> None:
        self.ranks = []
        for command in (options or Vllm()).workers(launch):
            process = template.start(command)
            self.ranks.append(process)
            process.stdin.write(command.stdin)
            process.stdin.flush()
        self.address = self.event(0, "listening")["address"]


@asynccontextmanager
async def serving(
    launch: EngineLaunch, template: TemplateForTests, options: Vllm | None = None
) -> AsyncIterator[tuple[Forked, LinkClient]]:
    """The engine, active, and a link to it."""
    with Forked(launch, template, options) as engine:
        await asyncio.to_thread(engine.wait_ready)
        link = await LinkClient.connect(engine.address, TOKEN, policy=PATIENT)
        try:
            await link.activate()
            yield engine, link
        finally:
            link.close()


def shared_memory(engine: Forked) -> set[str]:
    """What its ranks share on a CPU, as the kernel calls it: `(deleted)` once it has no name."""
    maps = [Path(f"/proc/{rank.pid}/maps").read_text() for rank in engine.ranks]
    return {
        line[line.index("/dev/shm/") :]
        for line in "\n".join(maps).splitlines()
        if "-cpushm_" in line
    }


def queues_of(engine: Forked) -> set[str]:
    """What a message queue of vLLM's leaves: rings in shared memory, and threads of ZeroMQ."""
    found: set[str] = set()
    for rank in engine.ranks:
        process = Path(f"/proc/{rank.pid}")
        lines = (process / "maps").read_text().splitlines()
        found |= {line.rpartition("/")[2] for line in lines if "/dev/shm/psm_" in line}
        threads = [task.read_text().strip() for task in process.glob("task/*/comm")]
        found |= {name for name in threads if name.startswith("ZMQ")}
    return found


def telling() -> list[EngineRequest]:
    """Requests that make ranks say more than tokens."""
    prompt = tuple(range(5, 14))
    kinds = [
        SamplingParams(max_tokens=4, temperature=0.8, seed=5, logprobs=3, stop_token_ids=(499,)),
        SamplingParams(max_tokens=2, temperature=0, prompt_logprobs=2),
        SamplingParams(max_tokens=4, guided={"regex": "[a-z]+"}),
        SamplingParams(max_tokens=6, logit_bias={3: 2.5}, presence_penalty=0.5, min_tokens=2),
    ]
    requests = [EngineRequest(f"t{i}", prompt, sampling) for i, sampling in enumerate(kinds)]
    return [*requests, evolve(requests[-1], id="resumed", output=(7, 8))]


def greedy_requests(count: int, vocab: int, tokens: int = 24) -> list[EngineRequest]:
    """Prompts of 5 to 68 tokens."""
    sampling = SamplingParams(max_tokens=tokens, temperature=0)
    return [
        EngineRequest(
            f"r{i}", tuple((7 * i + 3 * j + j * j) % vocab for j in range(5 + 9 * i)), sampling
        )
        for i in range(count)
    ]


async def together(link: LinkClient, requests: Sequence[EngineRequest]) -> list[StepOutput]:
    """Whole outputs of requests that run at the same time."""
    return await asyncio.gather(*(generate(link, request) for request in requests))


class Reference:
    """The same weights in transformers, in float32."""

    def __init__(self, checkpoint: Path) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        loaded = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        self._model: Any = loaded.eval()

    def agrees(self, request: EngineRequest, output: StepOutput) -> bool:
        """Whether transformers' greedy choices are these tokens."""
        tokens = list(output.tokens)
        return greedy_of(self._model, request.prompt, tokens) == tokens


def reference(model: StoredModel) -> Reference:
    """Of a stored model."""
    return Reference(model.checkpoint)
