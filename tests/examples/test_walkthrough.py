"""The walkthrough, as a reader runs it: in a copy of the examples, with the quickstart's model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shuntserve_core.weights.quickstart import make_quickstart
from shuntserve_plugins.storage.directory import DirectoryStore

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.timeout(300)
def test_it_runs_to_its_end(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    made = tmp_path / ".quickstart"
    (made / "weights").mkdir(parents=True)
    make_quickstart(made / "SmolLM2-135M-Instruct", DirectoryStore(made / "weights"))
    file = tmp_path / "examples" / "quickstart.toml"
    file.write_text(file.read_text().replace("port = 8000", "port = 0"))
    script = tmp_path / "examples" / "walkthrough.py"
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("served: ' Paris"), done.stdout
    assert [line for line in lines if line.startswith("interrupted:")], done.stdout
    assert "HiGHS" not in done.stdout
