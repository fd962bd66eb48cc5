"""What benchmarks of a whole cluster share: a small one with simulated engines, and a load."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Self

from attrs import define, field

from shuntserve_core.testing.chaos.client import Answer, ask
from shuntserve_core.testing.chaos.cluster import Served
from shuntserve_core.testing.chaos.requests import Asked
from shuntserve_core.testing.models import write_tokenizer

TOML = """
[model]
name = "tiny"
layers = 12
hidden = 64
heads = 4
kv_heads = 2
head_dim = 16
intermediate = 128
vocab = 512
tied_embeddings = true
max_positions = 4096
dtype = "float32"
weight_dtype = "float32"
kv_dtype = "float32"

[workload]
input_tokens = 64
output_tokens = 32
max_length = 512

[[gpu]]
name = "even"
memory_bytes = {memory}
flops = {{ float32 = 2e9 }}
memory_bandwidth = 2e9

[[instance_type]]
name = "plain"
gpu = "even"
price = 1.0

[[cluster]]
instance = "plain"
count = {nodes}
market = "on-demand"

[estimator]
name = "paper"

[optimizer]
name = "beam-search"
whole_instances = true

[serve]
state_dir = "state"
model_dir = "model"
spares = {{ plain = {spares} }}
switch_margin = {margin}
max_batch = 64
strategy = "{strategy}"

[engine]
name = "simulated"
tpot = {tpot}
ttft = {ttft}
throughput = 0
start = {start}

[frontdoor]
port = 0
"""


def simulated_config(
    directory: Path,
    *,
    nodes: int = 5,
    spares: int = 1,
    memory: int = 4_000_000,
    tpot: float = 0.005,
    ttft: float = 0.01,
    start: float = 0.0,
    margin: float = 0.5,
    strategy: str = "shuntserve",
) -> Path:
    """Write a configuration, and the tokenizer that it names."""
    write_tokenizer(directory / "model", vocab_size=512)
    file = directory / "cluster.toml"
    file.write_text(
        TOML.format(
            nodes=nodes,
            spares=spares,
            memory=memory,
            tpot=tpot,
            ttft=ttft,
            start=start,
            margin=margin,
            strategy=strategy,
        )
    )
    return file


@define
class Load:
    """Streams that follow each other without end, and what their clients see."""

    served: Served
    model: str
    tokens: int
    """Of each stream, exactly."""
    answers: list[Answer] = field(factory=list)

    @classmethod
    async def on(cls, served: Served, tokens: int) -> Self:
        """A load for that cluster's model."""
        async with served.session.get(f"{served.url}/v1/models") as response:
            return cls(served, (await response.json())["data"][0]["id"], tokens)

    def start(self, streams: int) -> list[asyncio.Task[None]]:
        """So many streams at any time, until `end`."""
        return [asyncio.create_task(self._run(number)) for number in range(streams)]

    async def end(self, streams: list[asyncio.Task[None]]) -> int:
        """Stop; how many failed."""
        for stream in streams:
            stream.cancel()
        await asyncio.wait(streams)
        return sum(not stream.cancelled() for stream in streams)

    async def _run(self, number: int) -> None:
        while True:
            answer = Answer(self._story(number))
            self.answers.append(answer)
            await ask(self.served.session, self.served.url, answer.asked, answer)
            assert answer.complete, answer.error

    def _story(self, number: int) -> Asked:
        body = {
            "model": self.model,
            "prompt": f"This is the story of number {number}. Once",
            "max_tokens": self.tokens,
            "min_tokens": self.tokens,
            "temperature": 0.8,
            "seed": number,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return Asked("story", "/v1/completions", body)
