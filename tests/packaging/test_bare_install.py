"""`pip install shuntserve` as strangers do it: the wheel, and the newest of all that it needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "shuntserve_core", "plugins")
CONFIG = "quick.toml"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment that holds the wheel, and a configuration."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "source").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder,
        folder / "source")  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", folder / "env")
    run(folder / "env/bin/python", "-m", "pip", "install", "--quiet", wheel)
    shutil.copy(ROOT / "examples" / "paper-qwen3-32b.toml", folder / CONFIG)
    return folder


def run(*argv: object, cwd: Path | None = None) -> str:
    """Standard output alone; no constraints, and nothing of this environment."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ended = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        env=environment | {"PIP_CONSTRAINT": os.devnull},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "command",
    [
        "plugins --json",
        "schema",
        f"check {CONFIG} --json",
        f"plan {CONFIG} --out placement.json --json",
        f"plan {CONFIG} --optimizer beam-search --json",
        f"estimate {CONFIG} --pipeline g6e.xlarge:64 --json",
        f"compare {CONFIG} --optimizers exact,single-pipeline --json",
        f"simulate {CONFIG} --placement placement.json --rate 1 --requests 20 --json",
        f"layer {CONFIG} --gpu L40S --json",
    ],
)
def test_base_commands_run_and_print_one_document(bare: Path, command: str) -> None:
    printed = run(bare / "env/bin/shuntserve", *command.split(), cwd=bare)
    document: Any = json.loads(printed)
    assert document
