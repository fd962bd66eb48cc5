"""The contracts that shuntserve gives plugin authors, passed by this plugin."""

from __future__ import annotations

from collections.abc import Iterable

import shuntserve_homelab
from shuntserve_homelab.by_memory import ByMemory

from shuntserve_core.interfaces.optimizer import Optimizer
from shuntserve_core.testing.gpus import GpuContract
from shuntserve_core.testing.instance_types import InstanceTypeContract
from shuntserve_core.testing.optimizers import OptimizerContract
from shuntserve_core.types import GpuSpec, InstanceType


class TestGpus(GpuContract):
    def gpus(self) -> Iterable[GpuSpec]:
        return shuntserve_homelab.shuntserve_register_gpus()


class TestInstanceTypes(InstanceTypeContract):
    def instance_types(self) -> Iterable[InstanceType]:
        gpus = {gpu.name: gpu for gpu in shuntserve_homelab.shuntserve_register_gpus()}
        return shuntserve_homelab.shuntserve_register_instance_types(gpus=gpus)


class TestByMemory(OptimizerContract):
    def optimizer(self) -> Optimizer:
        return ByMemory()
