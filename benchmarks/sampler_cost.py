"""What a random choice of tokens costs a step: our noise, and vLLM's with and without seeds.

`python -m benchmarks.sampler_cost [--device cuda]` takes logits as they are behind all filters, and
times what makes tokens of them, on one thread of a CPU or on a GPU.  Ways are timed in turn.
Without vLLM, its ways are those of its sampler for GPUs, written out in PyTorch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import asdict, frozen

from shuntserve_core.sampling.noise import Noise

BATCHES = (1, 32, 256)
VOCABULARIES = (49_152, 128_256)
OURS, PEER, PEER_SEEDED = "ours", "vllm", "vllm, a generator a row"

Way = Callable[[torch.Tensor], torch.Tensor]


@frozen
class Cost:
    """One case, in milliseconds a step."""

    device: str
    batch: int
    vocab: int
    milliseconds: Mapping[str, float]
    """Medians by way."""

    @property
    def ratios(self) -> dict[str, float]:
        """Each way's time, ours being 1."""
        return {way: ms / self.milliseconds[OURS] for way, ms in self.milliseconds.items()}


def our_way(batch: int, vocab: int, device: torch.device) -> Way:
    """As both engines do it: keys of all rows, then tokens.  Positions go on from step to step."""
    noise, seeds, step = Noise(vocab, device), list(range(batch)), [0]

    def draw(logits: torch.Tensor) -> torch.Tensor:
        step[0] += 1
        return noise.choose(logits, noise.keys(seeds, [step[0]] * batch))

    return draw


def peer_ways(batch: int, device: torch.device) -> dict[str, Way]:
    """vLLM's sampler with no filter, without generators and with one for each row."""
    generators = {row: torch.Generator(device).manual_seed(row) for row in range(batch)}
    try:
        from vllm.platforms import current_platform
        from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler
    except ImportError:
        return {
            PEER: lambda logits: _exponential(logits, {}),
            PEER_SEEDED: lambda logits: _exponential(logits, generators),
        }
    current_platform.import_kernels()
    sampler: Any = TopKTopPSampler()
    return {
        PEER: lambda logits: sampler(logits, {}, None, None)[0],
        PEER_SEEDED: lambda logits: sampler(logits, generators, None, None)[0],
    }


def _exponential(logits: torch.Tensor, generators: Mapping[int, torch.Generator]) -> torch.Tensor:
    """The race of exponential variates: the smallest of variate / probability comes first."""
    probabilities = logits.softmax(-1)
    variates = torch.empty_like(probabilities)
    if len(generators) != len(probabilities):
        variates.exponential_()
    for row, generator in generators.items():
        variates[row].exponential_(generator=generator)
    return probabilities.div_(variates).argmax(-1)


def measure(batch: int, vocab: int, device: str = "cpu", seconds: float = 2.0) -> Cost:
    """Times of all ways for one shape, in turn for about so many seconds."""
    where = torch.device(device)
    logits = torch.randn(batch, vocab, generator=torch.Generator().manual_seed(0)).to(where) * 2
    ways = {OURS: our_way(batch, vocab, where), **peer_ways(batch, where)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(logits.clone())
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(times[OURS]) < 3:
        for name, way in ways.items():
            fresh = logits.clone()
            times[name].append(_timed(way, fresh, where))
    return Cost(device, batch, vocab, {n: statistics.median(t) * 1e3 for n, t in times.items()})


def _timed(way: Way, logits: torch.Tensor, device: torch.device) -> float:
    """Seconds of processor time on a CPU, which other programs do not change, else on the clock."""
    if device.type == "cpu":
        start = time.process_time()
        way(logits)
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    way(logits)
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def table(costs: Sequence[Cost]) -> str:
    """As markdown."""
    names = list(costs[0].milliseconds)
    lines = [
        "| batch | vocabulary | " + " | ".join(f"{name}, ms" for name in names) + " |",
        "| --- | --- | " + " | ".join("---" for _ in names) + " |",
    ]
    for cost in costs:
        cells = [f"{cost.milliseconds[name]:.3g} ({cost.ratios[name]:.2f})" for name in names]
        lines.append(f"| {cost.batch} | {cost.vocab:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each shape")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    costs = [
        measure(batch, vocab, options.device, options.seconds)
        for vocab in VOCABULARIES
        for batch in BATCHES
    ]
    print(json.dumps([asdict(cost) for cost in costs]) if options.json else table(costs))


if __name__ == "__main__":
    main()
