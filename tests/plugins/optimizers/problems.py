"""Problems for tests of optimizers: the published cluster, and small random ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.registry import Registry
from shuntserve_core.types import (
    Cluster,
    GpuSpec,
    InstanceType,
    Link,
    ModelSpec,
    Objective,
    Offer,
    Placement,
    Slo,
    Workload,
)
from shuntserve_plugins.estimators.paper import Paper

LLAMA = ModelSpec("llama", 80, 8192, 64, 8, 128, 28672, 128256)
QWEN = ModelSpec("qwen", 64, 5120, 64, 8, 128, 25600, 151936, family="qwen3")
SMALL = ModelSpec("small", 6, 2048, 16, 8, 128, 8192, 32000)
_TYPES = Registry().instance_types
_SPOT = {"g5.12xlarge": 2.2915, "g6.12xlarge": 1.9445, "g6e.xlarge": 0.7040}


def published(
    model: ModelSpec,
    objective: Objective | None = None,
    counts: tuple[int, int, int] = (2, 3, 4),
    **changes: Any,
) -> Problem:
    """The default cluster of arXiv 2606.18600, or another number of its instances."""
    offers = tuple(
        Offer(_TYPES[name], count, price)
        for (name, price), count in zip(_SPOT.items(), counts, strict=True)
    )
    return _problem(Cluster(offers), model, Workload(763, 232, 8192), objective, **changes)


def _problem(
    cluster: Cluster,
    model: ModelSpec,
    workload: Workload,
    objective: Objective | None,
    **changes: Any,
) -> Problem:
    estimator = Paper().bind(model, workload, cluster.catalog)
    return Problem(cluster, objective or Objective(), estimator, "paper", **changes)


@st.composite
def small_problems(draw: st.DrawFn) -> Problem:
    """Up to three instance types, some too small for the model, and any objective but `cost`."""
    offers = []
    for index in range(draw(st.integers(1, 3))):
        memory = draw(st.sampled_from([1, 2, 4, 8])) * 1_000_000_000
        speed = draw(st.floats(0.2, 3))
        gpu = GpuSpec(f"gpu{index}", memory, {"float16": 50e12 * speed}, 300e9 * speed)
        count = draw(st.sampled_from([1, 2, 3, 4, 6]))
        instance = InstanceType(f"type{index}", gpu, count, Link(4e9), Link(5e9, 1e-3))
        price = draw(st.floats(0.1, 5))
        offers.append(Offer(instance, draw(st.integers(0, 3)), price))
    slo = Slo(
        latency=draw(st.none() | st.floats(0.2, 10)), mode=draw(st.sampled_from(["soft", "hard"]))
    )
    objective = Objective(
        kind=draw(st.sampled_from(["throughput", "throughput-per-dollar"])),
        budget=draw(st.none() | st.floats(0.2, 20)),
        slo=slo,
    )
    return _problem(
        Cluster(tuple(offers)),
        SMALL,
        Workload(100, 20, 512),
        objective,
        whole_instances=draw(st.booleans()),
        seed=draw(st.integers(0, 3)),
    )


def shapes(placement: Placement) -> list[list[tuple[str, int, int]]]:
    """(instance, tensor parallel, layers) of every stage of every pipeline."""
    return [
        [(stage.instance, stage.tensor_parallel, stage.layers) for stage in pipeline.stages]
        for pipeline in placement.pipelines
    ]
