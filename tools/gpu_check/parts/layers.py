"""(d) One layer of the models that the estimates are for, measured beside the roofline.

A layer at tensor-parallel degree t is measured as the part of one card: a t-th of its heads and of
its MLP.  What the cards say to each other is left out on both sides.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen

from gpu_check.place import Place
from gpu_check.rows import Record, Skip
from shuntserve_core.config import estimator_from
from shuntserve_core.config.loader import Config, config_from_data
from shuntserve_core.measure.layer import LayerBench
from shuntserve_core.registry import Registry
from shuntserve_core.types import GpuSpec, InstanceType, Link, ModelSpec, StageKind

PREFILL = (256, 512, 1024, 2048, 4096, 8192)
DECODE = (1, 4, 16, 64, 128, 256)
CONTEXT = 512
DTYPES = ("dtype", "weight_dtype", "kv_dtype")
BUDGET_SECONDS = 0.4
"""For each of the 48 measurements; they must end within the part's limit."""
NAMES = {"H100": "H100", "H200": "H200", "A100": "A100", "L40S": "L40S", "A10G": "A10G"}
"""Registered GPU by a word of the device's name."""


@frozen
class Case:
    """A model, and the part of it that one card holds."""

    model: str
    degree: int

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.model}, 1/{self.degree} of a layer" if self.degree > 1 else self.model


CASES = (
    Case("meta-llama/Llama-3.1-8B", 1),
    Case("meta-llama/Llama-3.1-70B", 4),
    Case("meta-llama/Llama-3.1-70B", 8),
    Case("Qwen/Qwen3-32B", 1),
)


def run(record: Record, place: Place) -> None:
    """One row a case."""
    gpu = registered_gpu(torch.cuda.get_device_name(place.device), Registry())
    for case in CASES:
        with record.measure(case.label) as figures:
            ratios = []
            for label, predicted, measured in compare(case, gpu, place.device):
                figures[f"{label}, ms measured (predicted)"] = (
                    f"{1e3 * measured:.3f} ({1e3 * predicted:.3f})"
                )
                ratios.append(predicted / measured)
            errors = [abs(ratio - 1) for ratio in ratios]
            figures["median error, %"] = 100 * statistics.median(errors)
            figures["worst error, %"] = 100 * max(errors)
            figures["median of predicted / measured"] = statistics.median(ratios)


def registered_gpu(device_name: str, registry: Registry) -> GpuSpec:
    """The GPU that the estimator knows this device as.  Raises `Skip` if it knows none."""
    gpus = registry.gpus
    for word, name in NAMES.items():
        if word in device_name:
            for known in sorted(gpus, key=len):
                if known.startswith(name):
                    return gpus[known]
    raise Skip(f"there is no GPU spec for {device_name!r}")


def compare(
    case: Case, gpu: GpuSpec, device: str, budget: float = BUDGET_SECONDS
) -> Iterator[tuple[str, float, float]]:
    """(what, predicted seconds, measured seconds)."""
    config = _config(case)
    link = Link(bandwidth=1e9)
    instance = InstanceType("one card", gpu, 1, link, link)
    predictor: Any = estimator_from(config, None, catalog={instance.name: instance})
    kind = StageKind(instance.name, 1)
    bench = LayerBench(config.model, device=device, budget=budget)
    for tokens in PREFILL:
        predicted = predictor.prefill_layer(kind, tokens).seconds
        yield f"prefill {tokens}", predicted, bench.prefill(tokens)
    for batch in DECODE:
        predicted = predictor.decode_layer(kind, batch, CONTEXT).seconds
        yield f"decode {batch}", predicted, bench.decode(batch, CONTEXT)


def _config(case: Case) -> Config:
    """A configuration whose model is that part of the case's."""
    tables = {
        "model": {"name": case.model, **dict.fromkeys(DTYPES, "bfloat16")},
        "workload": {"input_tokens": 512, "output_tokens": 128, "max_length": 8192},
        "cluster": [{"instance": "p5.48xlarge", "count": 1, "market": "on-demand"}],
    }
    config = config_from_data(tables, Path("gpu-check.toml"), Registry())
    return evolve(config, model=part_of(config.model, case.degree))


def part_of(model: ModelSpec, degree: int) -> ModelSpec:
    """What one of so many cards computes of each layer."""
    return evolve(
        model,
        heads=model.heads // degree,
        kv_heads=max(model.kv_heads // degree, 1),
        intermediate=model.intermediate // degree,
    )
