"""Finding plugins: broken ones are reported and stop nothing; listing imports nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.hookspecs import Provider, hookimpl
from shuntserve_core.registry import DISABLE_VARIABLE, HOOKS, KINDS, Registry
from shuntserve_core.types import GpuSpec, InstanceType

GPU = GpuSpec("X1", 24_000_000_000, {"float16": 1e14}, 1e12)


def plugin(**hooks: Callable[..., object]) -> ModuleType:
    """A plugin with these hooks, as a module."""
    module = ModuleType("made_for_a_test")
    for name, hook in hooks.items():
        setattr(module, f"shuntserve_register_{name}", hookimpl(hook))
    return module


def test_bundled_plugins_come_through_the_same_door() -> None:
    registry = Registry()
    assert {info.package for info in registry.plugins} == {"shuntserve"}
    assert registry.failures == {}
    assert "paper" in registry.entries("estimator")
    assert registry.gpus["L4"].memory_bytes == 22_494_000_000
    assert registry.instance_types["g6.12xlarge"].gpu_count == 4


def test_a_plugin_adds_hardware_and_providers() -> None:
    def optimizers() -> Iterable[Provider]:
        yield Provider("mine", "collections:OrderedDict", "a test")

    registry = Registry(extra={"mine": plugin(gpus=lambda: [GPU], optimizers=optimizers)})
    assert registry.gpus["X1"] is GPU
    entry = registry.entries("optimizer")["mine"]
    assert (entry.plugin.name, entry.summary) == ("mine", "a test")
    assert registry.get("optimizer", "mine").__name__ == "OrderedDict"


def test_instance_types_are_given_all_gpus() -> None:
    seen: dict[str, GpuSpec] = {}

    def instance_types(gpus: dict[str, GpuSpec]) -> Iterable[InstanceType]:
        seen.update(gpus)
        return []

    registry = Registry(
        extra={
            "early": plugin(instance_types=instance_types),
            "late": plugin(gpus=lambda: [GPU]),
        }
    )
    assert registry.failures == {}
    assert {"X1", "L4"} <= seen.keys()


def broken() -> Iterable[GpuSpec]:
    yield GPU
    raise RuntimeError("no driver\nsecond line")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (plugin(gpus=broken), "RuntimeError: no driver"),
        (plugin(gpus=lambda: [3]), "expected a GpuSpec, got 3"),
        (plugin(gpus=lambda: [GpuSpec("L4", 1, {"float16": 1e9}, 1.0)]), "already provided"),
        (plugin(gpu=lambda: ()), "no hook is called shuntserve_register_gpu; did you mean"),
        (plugin(gpus=lambda wrong: []), "wrong"),
        (SimpleNamespace(), "unhashable"),
    ],
    ids=["raises", "type", "duplicate", "unknown hook", "unknown argument", "unhashable"],
)
def test_a_broken_plugin_is_reported_and_stops_nothing(value: object, says: str) -> None:
    registry = Registry(extra={"bad": value, "good": plugin(gpus=lambda: [gpu_named("Y1")])})
    assert says in registry.failures["(not installed):bad"]
    assert "\n" not in registry.failures["(not installed):bad"]
    assert {"L4", "Y1"} <= registry.gpus.keys()
    assert registry.gpus["L4"].memory_bytes == 22_494_000_000


def gpu_named(name: str) -> GpuSpec:
    return GpuSpec(name, 24_000_000_000, {"float16": 1e14}, 1e12)


def test_an_unknown_name_lists_what_there_is_and_what_failed() -> None:
    registry = Registry(extra={"bad": plugin(gpu=lambda: ())})
    with pytest.raises(UserError) as caught:
        registry.get("estimator", "papr", where="--estimator")
    error = caught.value
    assert error.where == "--estimator"
    for part in ("did you mean 'paper'", "roofline", "from shuntserve", "bad: no hook is called"):
        assert part in error.remedy


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("no_such_module:Thing", "install what provides 'no_such_module'"),
        ("collections:Thing", "report it to the authors"),
    ],
)
def test_a_provider_that_cannot_be_imported(target: str, says: str) -> None:
    providers = [Provider("mine", target)]
    registry = Registry(extra={"mine": plugin(optimizers=lambda: providers)})
    assert registry.failures == {}
    with pytest.raises(UserError, match="cannot be imported") as caught:
        registry.get("optimizer", "mine")
    assert says in caught.value.remedy


def test_disabling(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(disabled=["bundled-gpus"])
    assert registry.gpus == {}
    assert "paper" in registry.entries("estimator")
    assert [info.name for info in registry.plugins if info.disabled] == ["bundled-gpus"]
    assert registry.without([]) is registry
    assert registry.without(["bundled-estimators"]).entries("estimator") == {}
    monkeypatch.setenv(DISABLE_VARIABLE, "bundled-gpus, bundled-estimators")
    assert Registry().gpus == {}
    monkeypatch.setenv(DISABLE_VARIABLE, "*")
    assert all(info.disabled for info in Registry().plugins)


def test_every_hook_has_a_kind() -> None:
    assert len(HOOKS) == len(KINDS)
    assert {"gpu", "instance-type", "optimizer", "weight-store"} <= KINDS.keys()


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from shuntserve_core.cli import main\n"
        "sys.argv = ['shuntserve', 'plugins']\n"
        "main()\n"
        "print('HEAVY', sorted({'numpy', 'torch', 'boto3', 'highspy', 'deap', 'matplotlib',"
        " 'aiohttp', 'rich', 'cattrs', 'huggingface_hub', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "bundled-gpus" in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """Environment with packages whose plugins cannot be loaded."""
    for name, body in {
        "crashes": "raise RuntimeError('at import')",
        "exits": "import sys; sys.exit(3)",
        "works": "X = 1",
    }.items():
        (tmp_path / f"{name}_plugin.py").write_text(body)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[shuntserve]\n{name} = {name}_plugin\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_entry_points_that_fail(installed: dict[str, str]) -> None:
    command = [sys.executable, "-m", "shuntserve_core.cli", "plugins", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=installed, check=True)
    rows = {row["name"]: row for row in json.loads(done.stdout)["plugins"]}
    assert rows["crashes"]["error"] == "RuntimeError: at import"
    assert rows["exits"]["error"] == "SystemExit: 3"
    assert rows["works"]["error"] == ""
    assert (rows["works"]["package"], rows["works"]["version"]) == ("works", "1.0")
    assert rows["bundled-gpus"]["hooks"] == [
        "shuntserve_register_gpus",
        "shuntserve_register_instance_types",
    ]
