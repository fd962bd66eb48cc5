"""(e) vLLM: tokens a second with our engine and with stock vLLM on the same weights."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from gpu_check import model, vllm_engines
from gpu_check.model import Model
from gpu_check.place import Place
from gpu_check.rows import CheckFailed, Record
from gpu_check.vllm_engines import ENVIRONMENT, Node, Streams, requests
from shuntserve_plugins.engines.vllm.engine import Vllm

STREAMS, PROMPT = 64, 128
STOCK_SECONDS = 75.0


def run(record: Record, place: Place) -> None:
    """Ours, then stock, both in eager mode."""
    vllm_engines.need_vllm()
    on_gpu = place.on_gpu
    size = model.BILLION if on_gpu else model.SMALL
    dtype = torch.bfloat16 if on_gpu else torch.float32
    made = model.make(place.scratch, size, dtype, device=place.device)
    if on_gpu:
        torch.cuda.empty_cache()
    output = 192 if on_gpu else 32
    rates = {}
    with record.measure(f"ours, {STREAMS} streams, eager") as figures:
        rates["ours"] = asyncio.run(_ours(place, made, output))
        figures["output tokens/s"] = rates["ours"]
    with record.measure(f"stock vLLM, {STREAMS} streams, eager") as figures:
        rates["stock"] = stock(made, place.scratch, output)
        figures["output tokens/s"] = rates["stock"]
        if "ours" in rates:
            figures["ours / stock"] = rates["ours"] / rates["stock"]


async def _ours(place: Place, made: Model, output: int) -> float:
    node = Node(
        made,
        place.scratch / "run",
        place.device,
        kv_bytes=(4 << 30) if place.on_gpu else (64 << 20),
    )
    node.agent.run_dir.mkdir()
    options = Vllm(environment=ENVIRONMENT)
    dtype = "bfloat16" if place.on_gpu else "float32"
    await node.agent.prepare(options.template)
    launch = node.launch("ours", max_batch=STREAMS, dtype=dtype)
    engine = await node.start(launch, options)
    await asyncio.wait_for(engine.link.activate(), 60.0)
    rate = 0.0
    for length in (8, output):  # the first warms up
        asked = requests(STREAMS, PROMPT, length, made.size.vocab)
        streams = Streams(engine.link)
        began = time.perf_counter()
        streams.submit(asked)
        said = await streams.all(60.0)
        rate = sum(map(len, said.values())) / (time.perf_counter() - began)
    engine.link.close()
    await node.agent.close()
    return rate


def stock(made: Model, scratch: Path, output: int) -> float:
    """Tokens a second of `vllm.LLM` in a process of its own.  Raises `CheckFailed`."""
    answer = scratch / "stock.json"
    command = [sys.executable, "-m", "gpu_check.stock", str(made.directory), str(answer)]
    command += [str(STREAMS), str(PROMPT), str(output), str(made.size.vocab)]
    environment = {**os.environ, **Vllm(environment=ENVIRONMENT).template.environment}
    # Its own defaults, where the template has ours.
    for name in ("VLLM_USE_V2_MODEL_RUNNER", "VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS"):
        environment.pop(name, None)
    environment["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    try:
        done = subprocess.run(command, check=False, env=environment, timeout=STOCK_SECONDS)
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"stock vLLM was not done after {STOCK_SECONDS:.0f} s") from None
    if done.returncode:
        raise CheckFailed(f"stock vLLM ended with status {done.returncode}")
    return float(json.loads(answer.read_text())["rate"])
