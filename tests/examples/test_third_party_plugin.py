"""The example package, installed as a third party would, and used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "examples" / "third-party-plugin"


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


def run(installed: Path, *arguments: object) -> str:
    """A Python module with the package on its path."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=installed / "source",
        env={**os.environ, "PYTHONPATH": str(installed / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed(installed: Path) -> None:
    listed = json.loads(run(installed, "shuntserve_core.cli", "plugins", "--json"))
    provided = {
        (row["kind"], row["name"]): (row["package"], row["version"])
        for row in listed["provides"]
        if row["plugin"] == "homelab"
    }
    assert provided == dict.fromkeys(
        [("gpu", "RTX4090"), ("instance-type", "workstation-2x4090"), ("optimizer", "by-memory")],
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


def test_it_passes_the_contracts(installed: Path) -> None:
    out = run(installed, "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", "tests")
    assert " passed" in out
    assert "failed" not in out
