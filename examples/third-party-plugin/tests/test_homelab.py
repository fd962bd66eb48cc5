"""The contracts that shuntserve gives plugin authors, passed by this plugin."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import shuntserve_homelab
from shuntserve_homelab.attended import Attended
from shuntserve_homelab.by_memory import ByMemory
from shuntserve_homelab.ups import Ups, UpsCheck

from shuntserve_core.config import Config, load_config
from shuntserve_core.interfaces.check import Check
from shuntserve_core.interfaces.cloud import SpotSource
from shuntserve_core.interfaces.launcher import Launcher
from shuntserve_core.interfaces.optimizer import Optimizer
from shuntserve_core.testing.checks import CheckContract
from shuntserve_core.testing.clouds import SpotSourceContract
from shuntserve_core.testing.gpus import GpuContract
from shuntserve_core.testing.instance_types import InstanceTypeContract
from shuntserve_core.testing.launchers import LauncherContract
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


class TestUps(SpotSourceContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> SpotSource:
        (tmp_path / "ups").write_text("battery 240\n")
        return Ups(tmp_path / "ups", interval=0.05)


class TestUpsCheck(CheckContract):
    def make_check(self) -> Check:
        return UpsCheck()

    def config(self) -> Config:
        return load_config(Path(__file__).parents[1] / "homelab.toml")


class TestAttended(LauncherContract):
    OUTLIVES = False

    def make_launcher(self) -> Launcher:
        return Attended()


def test_the_battery_is_looked_for_beside_the_configuration() -> None:
    config = load_config(Path(__file__).parents[1] / "homelab.toml")
    [finding] = UpsCheck().findings(config)
    assert str(config.file.parent / "ups.txt") in finding.detail
