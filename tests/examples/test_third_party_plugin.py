"""The example package, installed as a third party would, and used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples" / "third-party-plugin"
PACKAGE = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "shuntserve_core", "plugins")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package in a folder of its own, beside a copy of its source."""
    root = tmp_path_factory.mktemp("third-party")
    shutil.copytree(SOURCE, root / "source")  # building leaves files behind
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
            "--no-build-isolation", "--target", root / "installed", root / "source",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return root


def run(installed: Path, *arguments: object, fails: bool = False) -> str:
    """A Python module with the package on its path."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=installed / "source",
        env={**os.environ, "PYTHONPATH": str(installed / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed(installed: Path) -> None:
    listed = json.loads(run(installed, "shuntserve_core.cli", "plugins", "--json"))
    provided = {
        (row["kind"], row["name"]): (row["package"], row["version"])
        for row in listed["provides"]
        if row["plugin"] == "homelab"
    }
    assert provided == dict.fromkeys(
        [
            ("gpu", "RTX4090"),
            ("instance-type", "workstation-2x4090"),
            ("optimizer", "by-memory"),
            ("spot-source", "ups"),
            ("launcher", "attended"),
            ("check", "ups"),
        ],
        ("shuntserve-homelab", "1.2.0"),
    )


def test_it_plans(installed: Path) -> None:
    arguments = ("plan", "homelab.toml", "--estimator", "paper", "--json")
    placement = json.loads(run(installed, "shuntserve_core.cli", *arguments))
    assert placement["optimizer"] == "by-memory"
    [pipeline] = placement["pipelines"]
    assert [(s["instance"], s["layers"]) for s in pipeline["stages"]] == [
        ("workstation-2x4090", 20),
        ("workstation-2x4090", 20),
    ]


def test_its_options_are_in_the_schema(installed: Path) -> None:
    schema = json.loads(run(installed, "shuntserve_core.cli", "schema"))
    option = schema["properties"]["optimizer"]["properties"]["max_stages"]
    alternatives = option.get("anyOf", [option])
    assert "optimizer by-memory: Most stages of the pipeline." in [
        alternative["description"] for alternative in alternatives
    ]


def test_options_of_its_spot_source_are_in_the_schema(installed: Path) -> None:
    schema = json.loads(run(installed, "shuntserve_core.cli", "schema"))
    options = schema["properties"]["spot"]["items"]["properties"]
    alternatives = options["file"]["anyOf"]
    assert any("spot-source ups: File with the state" in one["description"] for one in alternatives)
    assert {one["type"] for one in alternatives} == {"string"}


def test_its_check_is_asked(installed: Path) -> None:
    out = run(installed, "shuntserve_core.cli", "doctor", "homelab.toml", fails=True)
    assert "ups.txt says nothing" in out
    assert "start the UPS daemon" in out


def test_it_passes_the_contracts(installed: Path) -> None:
    out = run(installed, "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", "tests")
    assert " passed" in out
    assert "failed" not in out


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment into which shuntserve was installed from a wheel, as strangers have it; all
    that it needs comes from this environment."""
    root = tmp_path_factory.mktemp("wheels")
    (root / "source").mkdir()
    for name in PACKAGE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / "source" / name)
    pip = [sys.executable, "-m", "pip"]
    flags = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    built = [*pip, "wheel", *flags, "-w", root, root / "source"]
    subprocess.run(built, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "env"], check=True)
    [packages] = (root / "env").glob("lib/python*/site-packages")
    [wheel] = root.glob("*.whl")
    subprocess.run([*pip, "install", *flags, "--target", packages, wheel], check=True)
    (packages / "these.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return root


def test_the_wheel_says_that_it_is_typed(wheels: Path) -> None:
    [packages] = (wheels / "env").glob("lib/python*/site-packages")
    assert (packages / "shuntserve_core" / "py.typed").is_file()
    assert (packages / "shuntserve_plugins" / "py.typed").is_file()


@pytest.mark.timeout(600)
def test_it_is_typed_strictly_against_the_wheel(wheels: Path, tmp_path: Path) -> None:
    """Hooks, protocols, contracts and what the registry finds: nothing of them is `Any`."""
    source = shutil.copytree(SOURCE, tmp_path / "source")
    command = [sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache"]
    command += ["--python-executable", wheels / "env" / "bin" / "python"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert "Success: no issues found" in done.stdout, done.stdout
    (source / "use.py").write_text(USE)
    command.append("use.py")
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    said = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    here = "shuntserve_core"
    assert said[:-1] == [
        f'note: Revealed type is "type[{here}.interfaces.optimizer.Optimizer]"',
        f'note: Revealed type is "{here}.interfaces.frontdoor.FrontDoor"',
        'note: Revealed type is "type[object]"',
        'error: "Optimizer" has no attribute "plaice"; maybe "place"?  [attr-defined]',
        'error: Incompatible types in assignment (expression has type "Mute", variable has type '
        '"SpotSource")  [assignment]',
    ], done.stdout


USE = """
from shuntserve_core.config import Config
from shuntserve_core.config.build import plugin_from
from shuntserve_core.interfaces.cloud import SpotSource
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.registry import Registry

class Mute:
    pass

def use(registry: Registry, problem: Problem, config: Config, where: str) -> None:
    reveal_type(registry.get("optimizer", "x"))
    reveal_type(plugin_from(config, "frontdoor", config.document.frontdoor))
    reveal_type(registry.get(where, "x"))
    registry.get("optimizer", "x")().plaice(problem)
    source: SpotSource = Mute()
"""
