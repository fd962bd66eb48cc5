"""Where the check ran."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

_PROBE = """
import json, torch
there = torch.cuda.is_available()
facts = {"torch": torch.__version__, "gpus": torch.cuda.device_count() if there else 0}
if there:
    of = torch.cuda.get_device_properties(0)
    facts |= {"gpu": of.name, "capability": f"{of.major}.{of.minor}", "bytes": of.total_memory}
print(json.dumps(facts))
"""
_PACKAGES = ("triton", "cuda-bindings", "numpy", "vllm", "transformers")

Facts = dict[str, str]


def look() -> tuple[str, Facts]:
    """The device to use (`cuda:0`, or `cpu`), and what there is to say of the machine.

    torch is asked in another process: this one must not hold a context on the card.
    """
    facts: Facts = {
        "Python": platform.python_version(),
        "kernel": platform.release(),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
    }
    try:
        answer = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=60, check=True
        )
        torch = json.loads(answer.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        torch = {"torch": f"does not answer: {error}", "gpus": 0}
    facts["torch"] = str(torch["torch"])
    for package in _PACKAGES:
        facts[package] = _version(package)
    if not torch["gpus"]:
        return "cpu", {"GPU": "none", **facts}
    card = f"{torch['gpu']}, {torch['bytes'] / 2**30:.1f} GiB, sm_{torch['capability']}"
    return "cuda:0", {"GPU": card, "driver": _driver(), **facts}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not there"


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.splitlines()[0].strip()


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
