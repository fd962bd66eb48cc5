"""GPU specs and instance types that come with shuntserve."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import hookimpl
from shuntserve_core.types import GpuSpec, InstanceType


@hookimpl
def shuntserve_register_gpus() -> Iterable[GpuSpec]:
    """NVIDIA GPUs."""
    from shuntserve_plugins.gpus.nvidia import GPUS

    return GPUS


@hookimpl
def shuntserve_register_instance_types(gpus: dict[str, GpuSpec]) -> Iterable[InstanceType]:
    """What AWS rents."""
    from shuntserve_plugins.gpus.aws import instance_types

    return instance_types(gpus)
