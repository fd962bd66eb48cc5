"""What the plan leaves for the largest step is at least what vLLM takes for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cattrs
import pytest
from attrs import evolve

from shuntserve_core.interfaces.estimator import Position
from shuntserve_plugins.engines.vllm.engine import Vllm, WorkerSpec
from shuntserve_plugins.estimators.roofline.memory import Memory, Runtime
from tests.plugins.engines.embedded.processes import Stores
from tests.plugins.engines.vllm.models import StoredModel, launch_of

pytestmark = pytest.mark.timeout(300)
ALONE = Position(first=True, last=True)


def test_the_largest_step_takes_no_more_than_planned(llama: StoredModel, tmp_path: Path) -> None:
    tokens, requests = 1024, 48
    with Stores(tmp_path, 1) as stores:
        launch = evolve(launch_of(llama, [(0, 8)], [1], stores), max_batch=requests)
        options = Vllm(max_batched_tokens=tokens)
        command = options.workers(launch)[0]
        spec = cattrs.unstructure(WorkerSpec(launch, 0, options))
        done = subprocess.run(
            [sys.executable, "-m", "tests.plugins.engines.vllm.peak"],
            input=json.dumps(spec) + "\n",
            env={**os.environ, **command.environment},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout)
    memory = Memory(llama.spec, 0.9, Runtime(workspace=0.0), tokens, requests)
    step = memory.working(1, ALONE, 0)
    sampling = memory.working(1, ALONE, requests) - step
    assert 0.7 * step < measured["forward"] <= step
    assert 0.7 * sampling < measured["demanding"] <= sampling
    standby = memory.request_bytes(ALONE) * requests - sampling
    assert 0.7 * standby < measured["sampler"] <= standby
    assert measured["all"] <= step + sampling
