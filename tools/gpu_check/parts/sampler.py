"""(c) What our noise costs a step, beside vLLM's own ways; and that it is the CPU's to the bit."""

from __future__ import annotations

import torch

from benchmarks.sampler_cost import measure
from gpu_check.place import Place
from gpu_check.rows import Figures, Record, Skip, expect
from shuntserve_core.sampling.noise import Noise

BATCH, VOCABULARY = 256, 128_256
SECONDS = 4.0
ROWS = 32


def run(record: Record, place: Place) -> None:
    """Equality, then cost."""
    if not place.on_gpu:
        raise Skip("there is no GPU")
    with record.check("the same logits give the CPU's tokens") as figures:
        _compare(place.device, figures)
    with record.measure(f"batch {BATCH}, vocabulary of {VOCABULARY:,}") as figures:
        cost = measure(BATCH, VOCABULARY, place.device, SECONDS)
        for way, milliseconds in cost.milliseconds.items():
            figures[f"{way}, ms a step"] = milliseconds
            figures[f"{way}, as a multiple of ours"] = cost.ratios[way]


def _compare(device: str, figures: Figures) -> None:
    logits = torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(0))
    seeds, positions = list(range(ROWS)), [7 * row for row in range(ROWS)]
    chosen = []
    for where in ("cpu", device):
        noise = Noise(VOCABULARY, where)
        chosen.append(noise.choose(logits.to(where), noise.keys(seeds, positions)).cpu())
    same = int((chosen[0] == chosen[1]).sum())
    figures["rows"] = ROWS
    figures["rows with the same token"] = same
    expect(same == ROWS, f"{ROWS - same} of {ROWS} rows chose another token")
