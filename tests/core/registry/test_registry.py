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

from shuntserve_core import hookspecs
from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.config.plugins import PluginsTable, check_required
from shuntserve_core.errors import UserError
from shuntserve_core.hookspecs import Provider, Unusable, hookimpl
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.registry import DISABLE_VARIABLE, HOOKS, KINDS, Registry
from shuntserve_core.types import GpuSpec, InstanceType, Placement
from shuntserve_plugins.gpus import aws, gcp
from shuntserve_plugins.gpus.rented import Rented

GPU = GpuSpec("X1", 24_000_000_000, {"float16": 1e14}, 1e12)


class Nothing:
    """An optimizer that chooses nothing."""

    def place(self, problem: Problem) -> Placement:
        raise UserError("nothing is chosen")


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
        yield Provider("mine", f"{__name__}:Nothing", "a test")

    registry = Registry(extra={"mine": plugin(gpus=lambda: [GPU], optimizers=optimizers)})
    assert registry.gpus["X1"] is GPU
    entry = registry.entries("optimizer")["mine"]
    assert (entry.plugin.name, entry.summary) == ("mine", "a test")
    assert registry.get("optimizer", "mine") is Nothing


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
        (
            plugin(gpus=lambda: [GpuSpec("L4", 1, {"float16": 1e9}, 1.0)]),
            "gpu L4: is already provided by shuntserve:bundled-gpus",
        ),
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


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([3], "gpu: expected a GpuSpec, got 3"),
        ([GpuSpec("", 1, {"float16": 1e9}, 1.0)], "gpu: '' is no name"),
        ([GpuSpec("A\nB", 1, {"float16": 1e9}, 1.0)], "is no name"),
        ([GpuSpec("B42", 1, {}, 1.0)], "gpu B42: flops gives no rate"),
        ([GpuSpec("B42", 1, {"fp17": 1e9}, 1.0)], "gpu B42: flops has the unknown type 'fp17'"),
        ([GpuSpec("B42", 1, {"float16": -1.0}, 1.0)], "gpu B42: flops of float16 is -1"),
        ([GpuSpec("B42", 1, {"float16": float("nan")}, 1.0)], "gpu B42: flops of float16 is nan"),
        ([GpuSpec("B42", 1, {"float16": 1e9}, float("inf"))], "gpu B42: memory_bandwidth is inf"),
        ([GPU, GPU], "gpu X1: is already provided by (not installed):bad"),
        ([Unusable("B42", "no driver\nhere")], "gpu B42: no driver here"),
    ],
)
def test_a_value_that_cannot_be_used_takes_down_itself_alone(
    values: list[object], says: str
) -> None:
    around = [gpu_named("Before"), *values, gpu_named("After")]
    registry = Registry(extra={"bad": plugin(gpus=lambda: around)})
    assert says in registry.failures["(not installed):bad"]
    assert "\n" not in registry.failures["(not installed):bad"]
    assert {"Before", "After", "L4"} <= registry.gpus.keys()
    assert "B42" not in registry.gpus


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "returned None"),
        ("L4", "returned a str"),
        ({"L4": GPU}, "returned a dict"),
        (GPU, "returned a GpuSpec"),
    ],
)
def test_a_hook_that_returns_no_list(value: object, says: str) -> None:
    registry = Registry(extra={"bad": plugin(gpus=lambda: value)})
    assert says in registry.failures["(not installed):bad"]


def test_a_gpu_without_a_link_takes_down_its_instance_types_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aws, "ROWS", (Rented("p9.big", "X1", 8, 9.0), *aws.ROWS))
    monkeypatch.setattr(gcp, "ROWS", (Rented("a9-big", "X1", 8, 9.0), *gcp.ROWS))
    registry = Registry(extra={"mine": plugin(gpus=lambda: [GPU])})
    reason = "no figure is known of the link between GPUs of the type X1"
    assert registry.failures == {
        "shuntserve:bundled-gpus": f"instance-type p9.big: {reason}; instance-type a9-big: {reason}"
    }
    assert {"g6.xlarge", "g2-standard-4", "local"} <= registry.instance_types.keys()
    assert "X1" in registry.gpus


def test_a_plugin_cannot_take_gpus_from_others() -> None:
    def greedy(gpus: dict[str, GpuSpec]) -> Iterable[InstanceType]:
        gpus.clear()
        return []

    seen: list[str] = []

    def second(gpus: dict[str, GpuSpec]) -> Iterable[InstanceType]:
        seen.extend(gpus)
        return []

    first, last = plugin(instance_types=greedy), plugin(instance_types=second)
    assert Registry(extra={"first": first, "last": last}).instance_types
    assert "L4" in seen


def test_one_module_under_two_names_serves_under_the_first() -> None:
    module = plugin(gpus=lambda: [GPU])
    registry = Registry(extra={"first": module, "second": module})
    assert registry.gpus["X1"] is GPU
    assert registry.failures == {
        "(not installed):second": "it is the same module as the plugin (not installed):first"
    }


def test_a_hook_that_takes_less_than_it_is_given_keeps_working(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A later core may give hooks more: plugins that were written before do not notice."""

    def later(gpus: dict[str, GpuSpec], region: str) -> Iterable[InstanceType]:
        raise AssertionError

    specs = SimpleNamespace(**vars(hookspecs))
    specs.shuntserve_register_instance_types = hookspecs.hookspec(later)
    monkeypatch.setattr("shuntserve_core.registry.hookspecs", specs)
    arguments = {"gpus": {"X1": GPU}, "region": "here"}
    monkeypatch.setattr(
        "shuntserve_core.registry._arguments",
        lambda kind, collected: arguments if kind == "instance-type" else {},
    )
    seen: list[object] = []

    def old(gpus: dict[str, GpuSpec]) -> Iterable[InstanceType]:
        seen.append(gpus)
        return []

    def older() -> Iterable[InstanceType]:
        seen.append("nothing")
        return []

    def new(gpus: dict[str, GpuSpec], region: str) -> Iterable[InstanceType]:
        seen.append(region)
        return []

    hooks = {"old": old, "older": older, "new": new}
    extra = {name: plugin(instance_types=hook) for name, hook in hooks.items()}
    assert Registry(extra=extra).failures == {}
    assert seen == [{"X1": GPU}, "nothing", "here"]


class Half:
    """An optimizer in name only."""


class Reads:
    """A balancer of another time."""

    def pick(self, candidates: object, hour: int) -> str:
        return ""

    def forget(self, name: str) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "hook", "target", "says"),
    [
        ("optimizer", "optimizers", "Half", "it lacks `place` of"),
        ("balancer", "balancers", "Reads", "its `pick` cannot be called: missing a required"),
        ("optimizer", "optimizers", "GPU", "it is no class but GpuSpec"),
    ],
)
def test_a_class_that_is_not_what_its_kind_wants(
    kind: str, hook: str, target: str, says: str
) -> None:
    providers = [Provider("mine", f"{__name__}:{target}")]
    registry = Registry(extra={"mine": plugin(**{hook: lambda: providers})})
    with pytest.raises(UserError, match="'mine' of package") as caught:
        registry.get(kind, "mine")
    assert says in caught.value.message
    assert "report it to the authors" in caught.value.remedy


def test_every_bundled_plugin_is_what_its_kind_wants() -> None:
    registry = Registry()
    kinds = set(KINDS) - {"gpu", "instance-type"}
    classes = [registry.get(kind, name) for kind in kinds for name in registry.entries(kind)]
    assert len(classes) >= 20
    assert registry.failures == {}


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


TWINS = """
from shuntserve_core.hookspecs import hookimpl
from shuntserve_core.types import GpuSpec

@hookimpl
def shuntserve_register_gpus():
    for name in ("{name}", "Both"):
        yield GpuSpec(name, {memory}, {{"float16": 1e9}}, 1.0)
"""


def test_two_packages_with_plugins_of_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, memory in (("alpha", 1), ("beta", 2)):
        module = TWINS.format(name=package, memory=memory)
        (tmp_path / f"{package}_twin.py").write_text(module)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[shuntserve]\ntwin = {package}_twin\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    assert registry.failures == {"beta:twin": "gpu Both: is already provided by alpha:twin"}
    assert {"alpha", "beta", "L4"} <= registry.gpus.keys()
    assert registry.gpus["Both"].memory_bytes == 1
    alone = Registry(disabled=["alpha:twin"])
    assert alone.failures == {}
    assert "alpha" not in alone.gpus
    assert alone.gpus["Both"].memory_bytes == 2
    mistakes = Mistakes("x.toml")
    check_required(PluginsTable(require=("alpha:twin", "twin")), alone, mistakes)
    assert [error.message for error in mistakes.found] == [
        '"alpha:twin" cannot be used: it is disabled',
        '"twin" cannot be used: it is disabled',
    ]
