"""The published offline run, simulated step by step with the roofline's times.

1,309 requests of the Azure conversation trace at once, Llama-3.1-70B, vLLM 0.8.1 without chunked
prefill: each of a pipeline's micro-batches is an engine of its own, with its share of the KV cache,
that prefills whenever a prompt fits and recomputes the newest request when the cache is full.
Prints requests/s over the whole run and over its first 80 %, beside what was measured.

    python benchmarks/offline_trace.py AzureLLMInferenceTrace_conv.csv
"""

from __future__ import annotations

import csv
import random
import sys
from collections import deque
from datetime import datetime
from pathlib import Path

from attrs import define, field

from shuntserve_core.interfaces.estimator import Position
from shuntserve_core.interfaces.layer import EngineStep
from shuntserve_core.registry import Registry
from shuntserve_core.types import ModelSpec, StageKind, Workload
from shuntserve_plugins.estimators.roofline import Roofline

MODEL = ModelSpec("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256)
REQUESTS, LONGEST, SECONDS = 1309, 2048, 1800
STEP_TOKENS, BLOCK = 8192, 16
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
    waiting: deque[Request] = field(factory=deque)
    running: list[Request] = field(factory=list)
    preemptions: int = 0

    def next_step(self) -> tuple[EngineStep, list[Request]] | None:
        admitted: list[Request] = []
        free = self.blocks - sum(r.blocks for r in self.running)
        tokens = 0
        while self.waiting and len(self.running) + len(admitted) < 256:
            request = self.waiting[0]
            if request.blocks > free or tokens + request.held > STEP_TOKENS:
                break
            admitted.append(self.waiting.popleft())
            free -= request.blocks
            tokens += request.held
        if admitted:
            pairs = sum(r.held * (r.held + 1) / 2 for r in admitted)
            self.running += admitted
            return EngineStep(tokens, pairs, tokens, len(admitted)), admitted
        while sum(r.blocks for r in self.running) > self.blocks:
            self.waiting.appendleft(self.running.pop())
            self.preemptions += 1
        if not self.running:
            return None
        context = sum(r.held for r in self.running)
        return EngineStep(decodes=len(self.running), decode_context=context), list(self.running)

    def finish(self, stepped: list[Request]) -> int:
        for request in stepped:
            request.done += 1
        ended = [r for r in stepped if r.done >= r.answer]
        self.running = [r for r in self.running if r.done < r.answer]
        return len(ended)


def run(bound, stages, requests: list[Request], blocks: int) -> list[float]:
    """Times at which requests end."""
    depth = len(stages)
    engines = [Engine(blocks // depth) for _ in stages]
    for number, request in enumerate(requests):
        engines[number % depth].waiting.append(request)
    placed = [(k, Position(i == 0, i == depth - 1), n) for i, (k, n) in enumerate(stages)]
    ready, free, ends = [0.0] * depth, [0.0] * depth, []
    while any(engine.waiting or engine.running for engine in engines):
        active = [i for i, e in enumerate(engines) if e.waiting or e.running]
        index = min(active, key=lambda i: ready[i])
        step = engines[index].next_step()
        if step is None:
            raise SystemExit("a request does not fit")
        cost = {where: bound.step_seconds(*where, step[0]) for where in set(placed)}
        time = ready[index]
        for stage, where in enumerate(placed):
            time = free[stage] = max(time, free[stage]) + cost[where]
        ready[index] = time
        ends += [time] * engines[index].finish(step[1])
    print(
        f"    {depth} stages, {len(requests)} requests, {blocks} blocks: {max(ends):.0f} s,"
        f" {sum(e.preemptions for e in engines)} preemptions"
    )
    return ends


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


def main() -> None:
    lengths = trace(Path(sys.argv[1]))
    means = [sum(column) / len(lengths) for column in zip(*lengths, strict=True)]
    print(f"{len(lengths)} requests, means {means[0]:.0f} in and {means[1]:.0f} out")
    workload = Workload(round(means[0]), round(means[1]), 8192, tuple(lengths))
    options = Roofline(chunked_prefill=False, eager=True, sequence_overhead=1e-4, max_num_seqs=256)
    bound = options.bind(MODEL, workload, Registry().instance_types)
    for name, pipelines in PLACEMENTS.items():
        print(name)
        estimates = [bound.estimate(stages) for stages in pipelines]
        total = sum(estimate.throughput_rps for estimate in estimates)
        ends, begin = [], 0
        for stages, estimate in zip(pipelines, estimates, strict=True):
            count = round(REQUESTS * estimate.throughput_rps / total)
            share = [Request(*pair) for pair in lengths[begin : begin + count]]
            begin += count
            ends += run(bound, stages, share, estimate.kv_blocks)
        ends.sort()
        most = int(0.8 * len(ends))
        print(
            f"  steady estimate {total:.3f}, simulated whole run {len(ends) / ends[-1]:.3f},"
            f" first 80 % of requests {most / ends[most]:.3f} requests/s"
        )


if __name__ == "__main__":
    main()
