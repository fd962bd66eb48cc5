"""How many stages an estimator scores in a second, for several numbers of pipelines at once.

python benchmarks/estimator_speed.py
"""

from __future__ import annotations

import time

import numpy as np

from shuntserve_core.registry import Registry
from shuntserve_core.types import ModelSpec, StageKind, Workload

MODEL = ModelSpec("llama-3.1-70b", 80, 8192, 64, 8, 128, 28672, 128256)
WORKLOAD = Workload(763, 232, 8192)
KINDS = [StageKind("g6.12xlarge", 4), StageKind("g6e.xlarge", 1), StageKind("g5.12xlarge", 4)]
DEPTH = 6


def main() -> None:
    registry = Registry()
    generator = np.random.default_rng(0)
    for name in ("paper", "roofline"):
        bound = registry.get("estimator", name)().bind(MODEL, WORKLOAD, registry.instance_types)
        for pipelines in (1, 100, 10_000):
            choice = generator.integers(0, len(KINDS), (pipelines, DEPTH))
            layers = np.tile([15, 13, 13, 13, 13, 13], (pipelines, 1))
            bound.scores(KINDS, choice, layers)
            runs, start = 0, time.perf_counter()
            while time.perf_counter() - start < 1.0:
                bound.scores(KINDS, choice, layers)
                runs += 1
            rate = runs * pipelines * DEPTH / (time.perf_counter() - start)
            print(f"{name:10} {pipelines:7,} pipelines at once: {rate:12,.0f} stages/s")


if __name__ == "__main__":
    main()
