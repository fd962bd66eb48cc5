"""GPU specs and instance types that come with shuntserve."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import Unusable, hookimpl
from shuntserve_core.types import GpuSpec, InstanceType


@hookimpl
def shuntserve_register_gpus() -> Iterable[GpuSpec]:
    """NVIDIA GPUs, and the processor of this machine."""
    from shuntserve_plugins.gpus.host import CPU
    from shuntserve_plugins.gpus.nvidia import GPUS

    return (*GPUS, CPU)


@hookimpl
def shuntserve_register_instance_types(
    gpus: dict[str, GpuSpec],
) -> Iterable[InstanceType | Unusable]:
    """What AWS and Google Cloud rent, and `local`."""
    from shuntserve_plugins.gpus import aws, gcp, host

    for module in (aws, gcp, host):
        yield from module.instance_types(gpus)
