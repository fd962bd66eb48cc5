"""What the doctor says of GPUs and of vLLM."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from shuntserve_plugins.engines.vllm.doctor import Gpus, VllmInstalled
from shuntserve_plugins.engines.vllm.symbols import SYMBOLS, Sources

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
    assert other.remedy == "pip install 'vllm>=0.32,<0.34'"


def test_a_changed_vllm(tmp_path: Path) -> None:
    """Every symbol is named that is not as it was in any of the versions."""
    installed = Path(find_spec("vllm").submodule_search_locations[0])  # type: ignore
    patched = tmp_path / "vllm"
    for symbol in SYMBOLS:
        *folders, file = symbol.module.split(".")
        for name in (Path(*folders, f"{file}.py"), Path(*folders, file, "__init__.py")):
            if (installed / name).is_file():
                (patched / name).parent.mkdir(parents=True, exist_ok=True)
                (patched / name).write_text((installed / name).read_text())
    core = patched / "v1" / "engine" / "core.py"
    core.write_text(core.read_text().replace("def abort_requests(self", "def abort_requests(us"))
    version, insides = VllmInstalled(sources=Sources(patched)).findings(None)
    assert (version.state, insides.state) == ("ok", "problem")
    assert insides.detail == "changed inside: vllm.v1.engine.core.EngineCore.abort_requests"
