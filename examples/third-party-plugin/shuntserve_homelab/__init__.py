"""A GPU, an instance type, an optimizer, a spot source, a check and a launcher for shuntserve.

This module is imported whenever shuntserve lists plugins, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import Provider, hookimpl
from shuntserve_core.types import Efficiency, GpuSpec, InstanceType, Link


@hookimpl
def shuntserve_register_gpus() -> Iterable[GpuSpec]:
    yield GpuSpec(
        name="RTX4090",
        memory_bytes=23_500_000_000,
        flops={"float16": 150e12, "bfloat16": 150e12, "fp8": 300e12},
        memory_bandwidth=920e9,
        efficiency=Efficiency(gemm=0.9, bandwidth=0.9, source="assumed, as for other Ada GPUs"),
        source="data sheet (165 TFLOP/s, 1,008 GB/s) less a tenth for what is sustained",
    )


@hookimpl
def shuntserve_register_instance_types(gpus: dict[str, GpuSpec]) -> Iterable[InstanceType]:
    yield InstanceType(
        name="workstation-2x4090",
        gpu=gpus["RTX4090"],
        gpu_count=2,
        link=Link(bandwidth=10e9, latency=0.05e-3),
        network=Link(bandwidth=1.2e9, latency=0.2e-3),
        price=0.25,  # electricity
    )


@hookimpl
def shuntserve_register_optimizers() -> Iterable[Provider]:
    yield Provider(
        "by-memory",
        "shuntserve_homelab.by_memory:ByMemory",
        "One pipeline over everything, layers by memory",
    )


@hookimpl
def shuntserve_register_spot_sources() -> Iterable[Provider]:
    yield Provider("ups", "shuntserve_homelab.ups:Ups", "Mains that fail, as a battery tells")


@hookimpl
def shuntserve_register_checks() -> Iterable[Provider]:
    yield Provider("ups", "shuntserve_homelab.ups:UpsCheck", "Whether the battery says anything")


@hookimpl
def shuntserve_register_launchers() -> Iterable[Provider]:
    yield Provider("attended", "shuntserve_homelab.attended:Attended", "Agents in the foreground")
