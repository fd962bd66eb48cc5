"""The bundled hardware passes the contracts that plugin authors are given."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.testing.gpus import GpuContract
from shuntserve_core.testing.instance_types import InstanceTypeContract
from shuntserve_core.types import GpuSpec, InstanceType
from shuntserve_plugins import gpus


class TestGpus(GpuContract):
    def gpus(self) -> Iterable[GpuSpec]:
        return gpus.shuntserve_register_gpus()


class TestInstanceTypes(InstanceTypeContract):
    def instance_types(self) -> Iterable[InstanceType]:
        known = {gpu.name: gpu for gpu in gpus.shuntserve_register_gpus()}
        return gpus.shuntserve_register_instance_types(gpus=known)
