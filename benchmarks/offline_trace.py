"""Pipelines simulated step by step with the roofline's times, beside its steady estimates.

Each micro-batch is a scheduler with its share of the KV cache, one step under way at a time, as in
vLLM.  When the cache is full it drops the newest request and computes it again later.

First steady throughput, from an endless queue with lengths of the Azure conversation trace, with
and without chunked prefill.  Then the published offline run: 1,309 requests at once, Llama-3.1-70B,
vLLM 0.8.1 without chunked prefill, beside what was measured.

    python benchmarks/offline_trace.py AzureLLMInferenceTrace_conv.csv
"""

from __future__ import annotations

import csv
import random
import sys
from collections import deque
from datetime import datetime
from itertools import product
from pathlib import Path

from attrs import define, field

from shuntserve_core.interfaces.estimator import Position
from shuntserve_core.interfaces.layer import EngineStep
from shuntserve_core.registry import Registry
from shuntserve_core.types import ModelSpec, StageKind, Workload
from shuntserve_plugins.estimators.roofline import Roofline

QWEN = ModelSpec("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936)
MODEL = ModelSpec("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256)
ONE_ENGINE = 0.6e9
"""Bytes for the runtime of one engine: those that were measured had no successor beside them."""
REQUESTS, LONGEST, SECONDS, MOST_SEQUENCES = 1309, 2048, 1800, 256
WHOLE_PROMPTS, BLOCK = 8192, 16
G5, G6 = StageKind("g5.12xlarge", 4), StageKind("g6.12xlarge", 4)
G6E = StageKind("g6e.xlarge", 1)
PLACEMENTS = {
    "ShuntServe (measured 1.529)": (
        [(G6, 14), (G6, 14), (G6E, 13), (G6E, 13), (G6E, 13), (G6E, 13)],
        [(G5, 26), (G5, 26), (G6, 28)],
    ),
    "even split (measured 1.072)": (
        [(G5, 40), (G5, 40)],
        [(G6, 27), (G6, 27), (G6, 26)],
        [(G6E, 20)] * 4,
    ),
}


@define(eq=False)
class Request:
    prompt: int
    answer: int
    done: int = 0
    computed: int = 0
    """Tokens whose keys and values are in the cache."""

    @property
    def held(self) -> int:
        return self.prompt + self.done

    @property
    def blocks(self) -> int:
        return self.held // BLOCK + 1


@define
class Engine:
    """One micro-batch: a scheduler with its own share of the cache."""

    blocks: int
    budget: int
    chunked: bool
    waiting: deque[Request] = field(factory=deque)
    running: list[Request] = field(factory=list)
    preemptions: int = 0

    def next_step(self) -> tuple[EngineStep, list[Request]]:
        """The next step, and the requests that get a token from it."""
        while sum(r.blocks for r in self.running) > self.blocks:
            dropped = self.running.pop()
            dropped.computed = 0
            self.waiting.appendleft(dropped)
            self.preemptions += 1
        decoding = [r for r in self.running if r.computed == r.held]
        room = self.budget - (len(decoding) if self.chunked else 0)
        chunks = self._chunks(room)
        if chunks and not self.chunked:
            decoding = []
        pairs = sum(n * (r.computed + (n + 1) / 2) for r, n in chunks)
        context = sum(r.computed + n for r, n in chunks)
        for request, tokens in chunks:
            request.computed += tokens
        ended = [r for r, _ in chunks if r.computed == r.held]
        cached = sum(r.held for r in decoding)
        tokens = sum(n for _, n in chunks)
        step = EngineStep(tokens, pairs, context, len(ended), len(decoding), cached)
        if not tokens and not decoding:
            raise SystemExit("a request does not fit")
        return step, decoding + ended

    def _chunks(self, room: int) -> list[tuple[Request, int]]:
        """Prompts to compute, and how many tokens of each."""
        pending = [r for r in self.running if r.computed < r.held]
        free = self.blocks - sum(r.blocks for r in self.running)
        chunks = []
        while room > 0:
            if pending:
                request = pending.pop(0)
            elif self.waiting and self._admits(self.waiting[0], free, room):
                request = self.waiting.popleft()
                free -= request.blocks
                self.running.append(request)
            else:
                break
            tokens = min(room, request.held - request.computed)
            chunks.append((request, tokens))
            room -= tokens
        return chunks

    def _admits(self, request: Request, free: int, room: int) -> bool:
        fits = request.blocks <= free and len(self.running) < MOST_SEQUENCES
        return fits and (self.chunked or request.held <= room)

    def finish(self, stepped: list[Request]) -> int:
        for request in stepped:
            request.done += 1
            request.computed = request.held
        before = len(self.running)
        self.running = [r for r in self.running if r.done < r.answer]
        return before - len(self.running)


def run(bound, stages, requests: list[Request], budget: int, chunked: bool) -> list[float]:
    """Times at which requests end, in order."""
    depth = len(stages)
    blocks = bound.estimate(stages).kv_blocks // depth
    engines = [Engine(blocks, budget, chunked) for _ in stages]
    for number, request in enumerate(requests):
        engines[number % depth].waiting.append(request)
    placed = [(k, Position(i == 0, i == depth - 1), n) for i, (k, n) in enumerate(stages)]
    ready, free, ends = [0.0] * depth, [0.0] * depth, []
    while active := [i for i, e in enumerate(engines) if e.waiting or e.running]:
        index = min(active, key=lambda i: ready[i])
        step, stepped = engines[index].next_step()
        cost = {where: bound.step_seconds(*where, step) for where in set(placed)}
        time = ready[index]
        for stage, where in enumerate(placed):
            time = free[stage] = max(time, free[stage]) + cost[where]
        ready[index] = time
        ends += [time] * engines[index].finish(stepped)
    dropped = sum(engine.preemptions for engine in engines)
    print(f"    {depth} stages, {len(requests)} requests: {max(ends):.0f} s, {dropped} dropped")
    return sorted(ends)


def steady(lengths: list[tuple[int, int]], workload: Workload) -> None:
    """Throughput while the queue is never empty, between the first quarter and seven tenths."""
    catalog = Registry().instance_types
    pipelines = (
        (MODEL, PLACEMENTS["ShuntServe (measured 1.529)"][0]),
        (MODEL, PLACEMENTS["ShuntServe (measured 1.529)"][1]),
        (QWEN, [(G6E, 16)] * 4),
        (QWEN, [(StageKind("g5.12xlarge", 1), 8)] * 8),
    )
    settings = (
        (
            WHOLE_PROMPTS,
            Roofline(
                chunked_prefill=False, eager=True, sequence_overhead=1e-4, runtime_bytes=ONE_ENGINE
            ),
        ),
        *(
            (n, Roofline(max_num_batched_tokens=n, runtime_bytes=ONE_ENGINE))
            for n in (2048, 512, 256)
        ),
    )
    for (budget, options), (model, stages) in product(settings, pipelines):
        bound = options.bind(model, workload, catalog)
        estimate = bound.estimate(stages)
        drawn = random.Random(0).choices(lengths, k=5 * estimate.batch)
        requests = [Request(*pair) for pair in drawn]
        ends = run(bound, stages, requests, budget, options.chunked_prefill)
        first, last = int(0.25 * len(ends)), int(0.7 * len(ends))
        found = (last - first) / (ends[last] - ends[first])
        kind = f"chunks of {budget}" if options.chunked_prefill else "whole prompts"
        print(
            f"  {model.name}, {len(stages)} stages, {kind}: estimate"
            f" {estimate.throughput_rps:.3f}, simulated {found:.3f} requests/s,"
            f" ratio {estimate.throughput_rps / found:.2f}"
        )


def trace(file: Path) -> list[tuple[int, int]]:
    rows = list(csv.DictReader(file.open()))
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    lengths = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in rows]
    early = [
        pair
        for time, pair in zip(times, lengths, strict=True)
        if (time - times[0]).total_seconds() < SECONDS and max(pair) <= LONGEST
    ]
    return random.Random(0).sample(early, REQUESTS)


def offline(lengths: list[tuple[int, int]], workload: Workload) -> None:
    """The published run."""
    options = Roofline(
        chunked_prefill=False, eager=True, sequence_overhead=1e-4, runtime_bytes=ONE_ENGINE
    )
    bound = options.bind(MODEL, workload, Registry().instance_types)
    for name, pipelines in PLACEMENTS.items():
        print(name)
        rates = [bound.estimate(stages).throughput_rps for stages in pipelines]
        ends, begin = [], 0
        for stages, rate in zip(pipelines, rates, strict=True):
            count = round(REQUESTS * rate / sum(rates))
            share = [Request(*pair) for pair in lengths[begin : begin + count]]
            begin += count
            ends += run(bound, stages, share, WHOLE_PROMPTS, chunked=False)
        whole = len(ends) / max(ends)
        print(f"  steady estimate {sum(rates):.3f}, simulated whole run {whole:.3f} requests/s")


def main() -> None:
    lengths = trace(Path(sys.argv[1]))
    means = [sum(column) / len(lengths) for column in zip(*lengths, strict=True)]
    print(f"{len(lengths)} requests, means {means[0]:.0f} in and {means[1]:.0f} out")
    workload = Workload(round(means[0]), round(means[1]), 8192, tuple(lengths))
    steady(lengths, workload)
    offline(lengths, workload)


if __name__ == "__main__":
    main()
