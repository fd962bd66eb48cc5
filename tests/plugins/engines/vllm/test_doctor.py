"""What the doctor says of GPUs and of vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from shuntserve_plugins.engines.vllm.doctor import Gpus, VllmInstalled

ROW = "0, NVIDIA L4, {driver}, 23034, {used}"


def _program(directory: Path, row: str, status: int = 0) -> str:
    path = directory / "driver-tool"
    path.write_text(f"#!/bin/sh\necho '{row}'\nexit {status}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("driver", "used", "states"),
    [
        ("580.95.05", 12, {"GPU 0": "ok", "driver": "ok"}),
        ("535.230.02", 20000, {"GPU 0": "warning", "driver": "problem"}),
    ],
)
def test_gpus(tmp_path: Path, driver: str, used: int, states: dict[str, str]) -> None:
    program = _program(tmp_path, ROW.format(driver=driver, used=used))
    found = {finding.what: finding.state for finding in Gpus(program).findings(None)}
    assert found.pop("CUDA") in {"ok", "problem"}
    assert found == states


def test_a_driver_that_does_not_answer(tmp_path: Path) -> None:
    program = _program(tmp_path, "NVIDIA-SMI has failed", status=9)
    (finding,) = Gpus(program).findings(None)
    assert (finding.state, finding.detail) == ("problem", "NVIDIA-SMI has failed")


def test_no_gpu() -> None:
    (finding,) = Gpus("no-such-tool").findings(None)
    assert finding.state == "absent"


def test_vllm() -> None:
    assert [finding.state for finding in VllmInstalled().findings(None)] == ["ok", "ok"]
    (missing,) = VllmInstalled("no-such-package").findings(None)
    assert missing.state == "absent"
    (other,) = VllmInstalled("numpy").findings(None)
    assert other.state == "problem"
