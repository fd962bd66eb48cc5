"""(b) The whole product with the engine `embedded`: two pipelines on one device, under streams.

What is said must be the same to the last byte: on this device and on the CPU, alone and together,
through a planned switch and through the kill of an engine's process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from attrs import define, field

from gpu_check import model
from gpu_check.model import Model
from gpu_check.place import Place
from gpu_check.rows import Figures, Record, Skip, expect
from shuntserve_core.testing.chaos.client import Answer, ask
from shuntserve_core.testing.chaos.cluster import Served, serving
from shuntserve_core.testing.chaos.disturbances import settled
from shuntserve_core.testing.chaos.requests import Asked

STREAMS = 16
TOKENS = 96
BEGAN_AFTER = 0.1
"""Seconds after a disturbance in which a gap may begin that is put down to it."""
NOTICE_SECONDS = 3.0
WATCH_SECONDS = 1.5
"""How long streams go on after a disturbance took effect."""
PLANNED, KILLED = "planned switch", "SIGKILL of an engine"
MIGRATED = ("migrated_planned", "migrated_unplanned")
SETTLE_SECONDS = 45.0

TOML = """
[model]
name = "random-llama"
dtype = "float32"
weight_dtype = "float16"
kv_dtype = "float32"
layers = {size.layers}
hidden = {size.hidden}
heads = {size.heads}
kv_heads = {size.kv_heads}
head_dim = {size.head_dim}
intermediate = {size.intermediate}
vocab = {size.vocab}
max_positions = {size.max_positions}

[weights]
store = "{model.weights}"
model = "{model.name}"

[workload]
input_tokens = 64
output_tokens = 64
max_length = 512

[[gpu]]
name = "part-of-a-card"
memory_bytes = {memory}
flops = {{ float32 = 40e9 }}
memory_bandwidth = 9e9

[[instance_type]]
name = "part"
gpu = "part-of-a-card"
price = 1.0

[[cluster]]
instance = "part"
count = {nodes}
market = "on-demand"

[estimator]
runtime_bytes = 0

[optimizer]
name = "beam-search"
whole_instances = true

[serve]
model_dir = "{model.directory}"
state_dir = "{state}"
spares = {{ part = {spares} }}
switch_margin = 0.5
max_batch = 16

[engine]
name = "embedded"

[launcher]
name = "local"
device = "{device}"

[frontdoor]
port = 0
"""


def run(record: Record, place: Place) -> None:
    """On the CPU first, then on the device."""
    size = model.TINY if not place.on_gpu else model.Size(8, 512, 8, 4, 64, 1376, model.TOKENS)
    made = model.make(place.scratch, size, torch.float16)
    asyncio.run(_run(record, place, made))


async def _run(record: Record, place: Place, made: Model) -> None:
    on_cpu: list[Answer] = []
    with record.check("one pipeline on the CPU answers") as figures:
        async with cluster(made, place.scratch / "one", "cpu", nodes=1, spares=0) as served:
            on_cpu = await together(served)
            figures["streams"] = len(on_cpu)
    if not on_cpu:
        raise Skip("the rest: there is nothing to compare with")
    async with cluster(made, place.scratch / "two", place.device, nodes=3, spares=1) as served:
        undisturbed: list[Answer] = []
        with record.check("two pipelines on one device say what the CPU says") as figures:
            undisturbed = await together(served)
            pipelines = (await served.status())["pipelines"]
            figures["pipelines"] = len(pipelines)
            figures["streams"] = len(undisturbed)
            figures["ordinary gap, ms"] = 1e3 * statistics.median(gaps(undisturbed))
            expect(len(pipelines) > 1, "there is only one pipeline")
            different = [
                a.asked.name
                for a, b in zip(undisturbed, on_cpu, strict=True)
                if not same_words(a, b)
            ]
            expect(not different, f"{len(different)} of {len(on_cpu)} streams differ: {different}")
        for kind in (PLANNED, KILLED):
            with record.check(f"{kind} under {STREAMS} streams") as figures:
                load = Disturbed(served)
                figures |= await load.through(kind)
                load.judge(undisturbed)


@define
class Disturbed:
    """The same streams again and again, while something happens."""

    served: Served
    answers: list[Answer] = field(factory=list)
    _over: bool = False

    async def through(self, kind: str) -> Figures:
        """Have it happen once all streams have begun to speak; the stall, and what moved."""
        await settled(self.served, SETTLE_SECONDS)
        before = await self._counters()
        workers = [asyncio.create_task(self._repeat(asked)) for asked in stories()]
        run = await self._busy()
        at = await self._disturb(kind, run)
        await asyncio.sleep(max(0.0, at + WATCH_SECONDS - time.time()))
        self._over = True
        await asyncio.gather(*workers)
        after = await self._counters()
        moved = sum(after[name] - before[name] for name in MIGRATED)
        expect(moved > 0, "no request was on the pipeline that went")
        return {
            "streams": len(self.answers),
            "requests that moved": moved,
            "tokens computed again": after["recomputed_tokens"] - before["recomputed_tokens"],
            "stall, ms": 1e3 * self._stall(at),
        }

    async def _repeat(self, asked: Asked) -> None:
        while not self._over:
            answer = Answer(asked)
            self.answers.append(answer)
            await ask(self.served.session, self.served.url, asked, answer)

    def _stall(self, at: float) -> float:
        """The longest gap of any stream around that time, in seconds."""
        around = (
            gap
            for answer in self.answers
            for when, gap in answer.gaps
            if when > at and when - gap < at + BEGAN_AFTER
        )
        return max(around, default=0.0)

    async def _counters(self) -> dict[str, int]:
        return dict((await self.served.status())["requests"]["counters"])

    async def _busy(self) -> dict[str, Any]:
        """The pipeline with most requests, once every stream has begun to speak."""
        while not (  # noqa: ASYNC110
            len(self.answers) >= STREAMS and all(a.gaps for a in self.answers[:STREAMS])
        ):
            await asyncio.sleep(0.01)
        runs = (await self.served.status())["pipelines"]
        return dict(max(runs, key=lambda run: int(run["running"])))

    async def _disturb(self, kind: str, run: dict[str, Any]) -> float:
        """Do it; the time at which it took effect."""
        node = run["stages"][0]["node"]
        if kind == PLANNED:
            told = time.time()
            await self.served.tell(node, "notice", NOTICE_SECONDS)
            at = await self._moved(run["name"], told)
            await asyncio.sleep(max(0.0, told + NOTICE_SECONDS + 0.5 - time.time()))
            await self.served.tell(node, "restored")
            return at
        workers = await self.served.workers(run["engine_id"])
        at = time.time()
        os.kill(workers[0], signal.SIGKILL)
        return at

    async def _moved(self, name: str, since: float) -> float:
        async with asyncio.timeout(SETTLE_SECONDS):
            while True:
                for line in (await self.served.status())["history"]:
                    ours = line["what"] == "requests move" and line["pipeline"] == name
                    if ours and line["time"] >= since:
                        return float(line["time"])
                await asyncio.sleep(0.05)

    def judge(self, undisturbed: list[Answer]) -> None:
        """Every stream ended, and says what it said undisturbed."""
        twins = {answer.asked.name: answer for answer in undisturbed}
        for answer in self.answers:
            name = answer.asked.name
            expect(answer.complete, f"{name} was cut: {answer.error}")
            expect(same_words(answer, twins[name]), f"{name} differs from its undisturbed twin")


def cluster(made: Model, directory: Path, device: str, *, nodes: int, spares: int) -> Any:
    """`shuntserve serve` with that many nodes, all on the device's first card."""
    directory.mkdir()
    size = made.size
    parameters = sum(model._count(shape) for shape in size.shapes.values())
    text = TOML.format(
        size=size,
        model=made,
        memory=2 * parameters + (256 << 20),
        nodes=nodes,
        spares=spares,
        state=directory / "state",
        device=device.partition(":")[0],
    )
    config = directory / "cluster.toml"
    config.write_text(text)
    return serving(config, directory / "state", directory / "serve.log")


def stories() -> list[Asked]:
    """Greedy and sampled streams with token logprobs, each of a prompt of its own."""
    asked = []
    for number in range(STREAMS):
        body = {
            "model": "random-llama",
            "prompt": [100 + (7 * number + token) % 250 for token in range(24)],
            "max_tokens": TOKENS,
            "min_tokens": TOKENS,
            "temperature": 0.0 if number % 2 else 0.8,
            "seed": number,
            "logprobs": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        asked.append(Asked(f"stream {number}", "/v1/completions", body))
    return asked


async def together(served: Served) -> list[Answer]:
    """All streams at once.  Raises `CheckFailed` if one fails."""
    answers = await asyncio.gather(*(ask(served.session, served.url, asked) for asked in stories()))
    for answer in answers:
        expect(answer.complete, f"{answer.asked.name} failed: {answer.error}")
    return list(answers)


def gaps(answers: list[Answer]) -> list[float]:
    """Seconds between two events of a stream."""
    return [gap for answer in answers for _, gap in answer.gaps]


def same_words(one: Answer, other: Answer) -> bool:
    """Whether every choice has the same text, tokens, end and usage.

    Log probabilities themselves depend on the device by rounding, and are left out.
    """

    def tokens(answer: Answer) -> list[Any]:
        return [[token for token, _ in said] for said in answer.logprobs.values()]

    return (one.texts, one.finish, one.usage, tokens(one)) == (
        other.texts,
        other.finish,
        other.usage,
        tokens(other),
    )
