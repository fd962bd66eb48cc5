"""GPUs of this machine, or what is missing, as the driver says it."""

from __future__ import annotations

import asyncio
import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from shuntserve_core.cli import cli
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.launcher import NodeSpec
from shuntserve_core.node import devices
from shuntserve_core.node.agent import Agent
from shuntserve_core.node.devices import DRIVER, cuda_trouble
from shuntserve_plugins.launchers.local import LocalLauncher

REAL = ctypes.CDLL
CONFIG = """
[model]
name = "tiny"
layers = 4
hidden = 64
heads = 4
kv_heads = 2
intermediate = 128
vocab = 512
max_positions = 512

[workload]
input_tokens = 64
output_tokens = 32
max_length = 256

[[cluster]]
instance = "g5.12xlarge"
count = 1
market = "on-demand"

[launcher]
name = "local"
device = "DEVICE"
"""


def driver(
    monkeypatch: pytest.MonkeyPatch,
    *,
    count: int,
    init: int = 0,
    torch: str = "2",
    bindings: bool = True,
) -> None:
    """A driver with so many GPUs, a version of torch, and cuda-bindings or not."""

    def counted(out: Any) -> int:
        out._obj.value = count
        return 0

    library = SimpleNamespace(cuInit=lambda _: init, cuDeviceGetCount=counted)
    monkeypatch.setattr(
        ctypes, "CDLL", lambda name, **how: library if name == DRIVER else REAL(name, **how)
    )

    def version(package: str) -> str:
        if package == "cuda-bindings" and not bindings:
            raise devices.importlib.metadata.PackageNotFoundError(package)
        return torch

    monkeypatch.setattr(devices.importlib.metadata, "version", version)


def test_a_machine_without_a_driver_is_told_so() -> None:
    assert (
        cuda_trouble(1, driver="libnone.so.1") == "this machine has no NVIDIA driver (libnone.so.1)"
    )


@pytest.mark.parametrize(
    ("machine", "trouble"),
    [
        ({"count": 4}, ""),
        ({"count": 3}, "a node has 4 GPUs, and this machine 3"),
        ({"count": 4, "init": 803}, "the NVIDIA driver does not start: CUDA error 803"),
        ({"count": 4, "torch": "2.13.0+cpu"}, "torch 2.13.0+cpu is built for the CPU"),
        ({"count": 4, "torch": "2.13.0+cu130"}, ""),
        (
            {"count": 4, "bindings": False},
            "cuda-bindings is not installed: it comes with the extra `cuda`",
        ),
    ],
)
def test_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], trouble: str
) -> None:
    driver(monkeypatch, **machine)
    assert cuda_trouble(4) == trouble


def test_the_local_launcher_starts_nothing_without_the_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver(monkeypatch, count=1)
    launcher = LocalLauncher(device="cuda")
    asyncio.run(launcher.open(tmp_path))
    with pytest.raises(UserError, match="a node has 2 GPUs, and this machine 1"):
        asyncio.run(launcher.launch(NodeSpec("two#0", "two", 2)))
    driver(monkeypatch, count=0)
    with pytest.raises(UserError, match="a node has 1 GPUs"):
        asyncio.run(LocalLauncher(device="cuda").open(tmp_path))
    asyncio.run(LocalLauncher().open(tmp_path))
    assert not list(tmp_path.glob("nodes/*"))


def test_every_node_of_a_machine_has_its_first_gpus(tmp_path: Path) -> None:
    """So that two pipelines can be tried on one card."""
    for name in ("one#0", "one#1"):
        described = asyncio.run(Agent(name, 2, tmp_path, device="cuda").describe())
        assert described["devices"] == ["cuda:0", "cuda:1"]
    assert asyncio.run(Agent("one#0", 2, tmp_path).describe())["devices"] == ["cpu", "cpu"]


@pytest.mark.parametrize(("device", "said"), [("cpu", False), ("cuda", True)])
def test_check_and_doctor_say_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, *, said: bool
) -> None:
    driver(monkeypatch, count=1)
    config = tmp_path / "cluster.toml"
    config.write_text(CONFIG.replace("DEVICE", device))
    checked = CliRunner().invoke(cli, ["check", str(config)])
    assert checked.exit_code == 0, checked.output
    trouble = "a node has 4 GPUs, and this machine 1"
    assert (trouble in checked.output) == said
    found = CliRunner().invoke(
        cli, ["doctor", str(config)], env={"SHUNTSERVE_DISABLE_PLUGINS": "bundled-clouds"}
    )
    assert (trouble in found.output) == said
    assert ("they can be on this machine" in found.output) != said


def test_another_device_is_refused_by_check(tmp_path: Path) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text(CONFIG.replace("DEVICE", "gpu"))
    checked = CliRunner().invoke(cli, ["check", str(config)])
    assert isinstance(checked.exception, UserError)
    assert "device" in (checked.exception.where or "")
