"""The processor of a laptop, for trying things out: typical figures, not measured on yours."""

from __future__ import annotations

from collections.abc import Iterator

from shuntserve_core.types import Efficiency, GpuSpec, InstanceType, Link

CPU = GpuSpec(
    name="CPU",
    memory_bytes=8_000_000_000,
    # Four cores with AVX2 at 3 GHz peak at 384 GFLOP/s; half precision is converted first.
    flops={"float32": 300e9, "bfloat16": 150e9, "float16": 150e9},
    memory_bandwidth=25e9,
    efficiency=Efficiency(
        gemm=0.6,
        attention=0.2,
        bandwidth=0.8,
        kv_bandwidth=0.5,
        elementwise=0.4,
        layer_overhead=100e-6,
        source="assumed: four AVX2 cores, two channels of DDR4, PyTorch",
    ),
    source="assumed: a laptop with 16 GB, half of it for the model",
)


def instance_types(gpus: dict[str, GpuSpec]) -> Iterator[InstanceType]:
    """`local`: this machine, with "several nodes" talking over loopback."""
    if CPU.name in gpus:
        yield InstanceType(
            name="local",
            gpu=gpus[CPU.name],
            gpu_count=1,
            link=Link(5e9, 50e-6),
            network=Link(2e9, 100e-6),
            cloud="",
        )
