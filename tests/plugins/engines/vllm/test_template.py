"""What ranks are forked from has nothing that a fork would break."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from shuntserve_plugins.engines.vllm.engine import Vllm

pytestmark = pytest.mark.timeout(120)

LOOK = """
import importlib, json, os, sys
importlib.import_module(sys.argv[1])
import torch, torch.distributed
descriptors = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
tasks = [f"/proc/self/task/{task}/comm" for task in os.listdir("/proc/self/task")]
print(json.dumps({
    "vllm": "vllm.v1.engine.core" in sys.modules,
    "threads": [open(task).read() for task in tasks],
    "cuda": torch.cuda.is_initialized(),
    "group": torch.distributed.is_initialized(),
    "open": [os.readlink(fd) for fd in descriptors if os.path.exists(fd)],
}))
"""


def test_importing_vllm_opens_no_device_and_starts_no_thread() -> None:
    """A CUDA context does not survive a fork, and neither do threads or the locks they hold."""
    template = Vllm().template
    done = subprocess.run(
        [sys.executable, "-c", LOOK, template.module],
        env={**os.environ, **template.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["vllm"], "the template imports what takes long"
    assert len(found["threads"]) == 1, found["threads"]
    assert not found["cuda"]
    assert not found["group"]
    assert not [path for path in found["open"] if path.startswith(("/dev/nvidia", "socket:"))]
