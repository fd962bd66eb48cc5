"""Our vLLM beside stock vLLM on the same machine: 16 streams of 64 tokens over HTTP.

    python benchmarks/vllm_throughput.py --rounds 5
    python benchmarks/vllm_throughput.py --variants stock-sync,ours,ours-lend

All servers are up, and idle but for the one that is measured; rounds go through them in turn, so
that other work on the machine disturbs all of them.  Weights are those of `tools/quickstart`.
Prints tokens a second (median and all runs), the ratio to the best stock server, how many texts
equal it, and the memory that each server takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from attrs import frozen

from shuntserve_core.testing.chaos import cluster
from shuntserve_core.testing.chaos.client import Answer, ask
from shuntserve_core.testing.chaos.cluster import serving
from shuntserve_core.testing.chaos.requests import Asked

QUICKSTART = Path(__file__).resolve().parents[1] / ".quickstart"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MAX_LENGTH = 1024
STOCK = {
    "stock": ["--enforce-eager"],
    "stock-sync": ["--enforce-eager", "--no-async-scheduling"],
    "stock-compiled": [],
}
OURS = {"ours": "auto", "ours-lend": "lend", "ours-copy": "copy"}
DEFAULT = "stock,stock-sync,ours,ours-lend"
SUBJECTS = ("a fox", "the river", "a lighthouse", "a robot", "snow", "a ship", "a violin", "tea")

TOML = """
[model]
name = "{model}"
dtype = "float32"
weight_dtype = "float16"
kv_dtype = "float32"

[weights]
store = "{weights}"
model = "{model}"

[workload]
input_tokens = 32
output_tokens = 64
max_length = {length}

[[gpu]]
name = "cpu"
memory_bytes = 4_000_000_000
flops = {{ float32 = 40e9 }}
memory_bandwidth = 9e9

[[instance_type]]
name = "one"
gpu = "cpu"
price = 0.01

[[cluster]]
instance = "one"
count = 1
market = "on-demand"

[estimator]
runtime_bytes = 0
weight_copies = 1

[serve]
model_dir = "{directory}"
model_name = "model"
state_dir = "{state}"
kv_bytes = 1_073_741_824
max_batch = 16

[engine]
name = "vllm"
weights = "{lent}"
silence_seconds = 60

[frontdoor]
port = 0
"""


@frozen
class Server:
    """One that is up."""

    name: str
    url: str
    pids: tuple[int, ...]

    def memory(self) -> int:
        """Bytes of all its processes, shared pages once."""
        return sum(psutil.Process(pid).memory_full_info().pss for pid in self.pids)


@asynccontextmanager
async def stock(name: str, directory: Path, seconds: float) -> AsyncIterator[Server]:
    """Stock vLLM's own server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = {
        "model": str(QUICKSTART / MODEL.rpartition("/")[2]),
        "served-model-name": "model",
        "dtype": "float32",
        "max-model-len": str(MAX_LENGTH),
        "max-num-seqs": "16",
        "block-size": "32",
        "host": "127.0.0.1",
        "port": str(port),
    }
    argv = [word for key, value in arguments.items() for word in (f"--{key}", value)] + STOCK[name]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        **({"TORCH_COMPILE_DISABLE": "1"} if "--enforce-eager" in argv else {}),
    }
    with (directory / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", *argv),
            env=os.environ | environment,
            stdout=log,
            stderr=log,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        await _healthy(url, process, seconds)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
        yield Server(name, url, tuple(one.pid for one in family))
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _healthy(url: str, process: asyncio.subprocess.Process, seconds: float) -> None:
    async with asyncio.timeout(seconds), aiohttp.ClientSession() as session:
        while process.returncode is None:
            try:
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.5)
    raise RuntimeError(f"{url} ended with code {process.returncode}")


@asynccontextmanager
async def ours(name: str, directory: Path) -> AsyncIterator[Server]:
    """One pipeline of one rank behind the front door."""
    own = directory / name
    own.mkdir()
    config = own / "cluster.toml"
    config.write_text(
        TOML.format(
            model=MODEL,
            weights=QUICKSTART / "weights",
            directory=QUICKSTART / MODEL.rpartition("/")[2],
            state=own / "state",
            length=MAX_LENGTH,
            lent=OURS[name],
        )
    )
    async with serving(config, own / "state", own / "serve.log") as served:
        pids = tuple(one.pid for one in served.processes())
        yield Server(name, served.url, pids)


def asked(count: int, tokens: int) -> list[Asked]:
    """Distinct greedy completions of the same length."""
    return [
        Asked(
            f"stream {i}",
            "/v1/completions",
            {
                "model": "model",
                "prompt": f"Story {i}, about {SUBJECTS[i % len(SUBJECTS)]}: Once upon a time",
                "max_tokens": tokens,
                "temperature": 0.0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        )
        for i in range(count)
    ]


async def measured(server: Server, requests: list[Asked]) -> tuple[float, list[Answer]]:
    """Tokens a second of all streams at once."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        began = time.perf_counter()
        answers = await asyncio.gather(*(ask(session, server.url, one) for one in requests))
        seconds = time.perf_counter() - began
    for answer in answers:
        if not answer.complete or answer.usage is None:
            raise RuntimeError(f"{server.name}: {answer.error or 'a stream broke off'}")
    tokens = sum((answer.usage or {})["completion_tokens"] for answer in answers)
    return tokens / seconds, list(answers)


def report(
    speeds: dict[str, list[float]], texts: dict[str, list[Answer]], memory: dict[str, int]
) -> dict[str, Any]:
    """As JSON."""
    medians = {name: statistics.median(runs) for name, runs in speeds.items()}
    best = max((name for name in speeds if name in STOCK), key=medians.__getitem__, default=None)
    found: dict[str, Any] = {}
    for name, runs in speeds.items():
        row = {
            "tokens_per_second": round(medians[name], 1),
            "runs": [round(run, 1) for run in runs],
        }
        if best is not None:
            row["to_best_stock"] = round(medians[name] / medians[best], 3)
            equal = [a.texts == b.texts for a, b in zip(texts[name], texts[best], strict=True)]
            row["equal_texts"] = f"{sum(equal)} of {len(equal)}"
        found[name] = {**row, "memory_mb": round(memory[name] / 1e6)}
    return found


async def main(options: argparse.Namespace) -> None:
    """Start all, measure in turn, and print."""
    cluster.START_SECONDS = options.seconds
    requests = asked(options.streams, options.tokens)
    speeds: dict[str, list[float]] = {}
    texts: dict[str, list[Answer]] = {}
    memory: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="throughput-") as scratch:
        async with AsyncExitStack() as stack:
            servers = []
            for name in options.variants.split(","):
                made = (
                    stock(name, Path(scratch), options.seconds)
                    if name in STOCK
                    else ours(name, Path(scratch))
                )
                servers.append(await stack.enter_async_context(made))
                await measured(servers[-1], asked(options.streams, 8))  # warms it up
                print(f"{name} is up", file=sys.stderr, flush=True)
            for _ in range(options.rounds):
                for server in servers:
                    speed, answers = await measured(server, requests)
                    speeds.setdefault(server.name, []).append(speed)
                    texts[server.name] = answers
            memory = {server.name: server.memory() for server in servers}
    print(json.dumps(report(speeds, texts, memory), indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", default=DEFAULT, help=f"of {', '.join([*STOCK, *OURS])}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=240.0, help="most that a start may take")
    asyncio.run(main(parser.parse_args()))
