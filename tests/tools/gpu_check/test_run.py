"""The command on a machine without a GPU: (a) and (b) on host memory, the rest skipped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_check.catalog import PARTS
from gpu_check.rows import FAILED, MEASURED, PASSED, SKIPPED

ROOT = Path(__file__).parents[3]


@pytest.mark.timeout(400)
def test_host_memory_passes_and_everything_else_is_skipped(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "gpu-check"), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=390
    )
    rows = json.loads((tmp_path / "gpu-check.json").read_text())["rows"]
    wrong = [row for row in rows if row["outcome"] == FAILED]
    assert not wrong, done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    by_part = {part.name: [row for row in rows if row["part"] == part.name] for part in PARTS}
    for part in PARTS:
        outcomes = {row["outcome"] for row in by_part[part.name]}
        assert outcomes <= ({PASSED, MEASURED} if part.host else {SKIPPED}), part.name
        assert outcomes, part.name
    checks = {row["check"]: row["figures"] for row in rows}
    assert checks["what a killed engine held is lent on, as zeros"]["cycles"] == 20
    assert checks["nobody writes to what was lent on"]["writers killed"] == 20
    assert checks["two pipelines on one device say what the CPU says"]["pipelines"] == 2
    assert "SIGKILL of an engine under 16 streams" in checks
    assert "It has not been run on a GPU yet" in (tmp_path / "gpu-check.md").read_text()
