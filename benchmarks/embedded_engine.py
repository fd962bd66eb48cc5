"""Speed of the embedded engine, and what a second engine on the same tensor stores costs.

    python benchmarks/embedded_engine.py MODEL_DIR WEIGHT_STORE BASE/MODEL

The weight store must hold the model for the degrees 1 and 3 (`shuntserve weights push --tp 1,3`).
Prints the machine's load first: a busy machine makes every figure worthless.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

from shuntserve_core.tensorstore import StoreClient
from shuntserve_core.types.request import EngineRequest, SamplingParams
from shuntserve_plugins.engines.embedded.geometry import read_geometry
from tests.plugins.engines.embedded.processes import (
    EngineProcesses,
    Model,
    Stores,
    Streams,
    launch_of,
)

MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    model = Model(options.model_dir, options.weights, options.name)
    layers = read_geometry(model.directory).layers
    third = layers // 3
    placements = [
        ([(0, layers)], [1]),
        ([(0, layers)], [3]),
        ([(0, third), (third, layers)], [1, 1]),
        ([(0, 2 * third), (2 * third, layers)], [3, 1]),
    ]
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("placement                one stream   16 streams      prefill   start   standby beside")
    for stages, degrees in placements:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(measure(model, stages, degrees, Path(directory)))


async def measure(
    model: Model, stages: list[tuple[int, int]], degrees: list[int], directory: Path
) -> None:
    with Stores(directory, sum(degrees)) as stores:
        for index, spec in enumerate(launch_of(model, stages, degrees, stores).ranks):
            shard = launch_of(model, stages, degrees, stores).shard(index)
            with StoreClient(spec.store_socket) as store:
                await asyncio.to_thread(store.load, shard)
        launch = launch_of(model, stages, degrees, stores, max_length=1024)
        started = time.perf_counter()
        with EngineProcesses(launch) as engine:
            await asyncio.to_thread(engine.wait_ready)
            start = time.perf_counter() - started
            link = await engine.link()
            await link.activate()
            streams = Streams(link)
            one = await rate(streams, "one", 1, 16, 48)
            many = await rate(streams, "many", 16, 16, 48)
            prefill = await rate(streams, "prefill", 1, 512, 1)
            beside = await standby_cost(model, stages, degrees, stores)
            link.close()
    label = "+".join(f"{b - a}x{t}" for (a, b), t in zip(stages, degrees, strict=True))
    speeds = f"{one:7.1f} tok/s {many:6.1f} tok/s {prefill:6.0f} tok/s"
    print(f"{label:22} {speeds} {start:5.1f} s   {beside}")


async def rate(streams: Streams, name: str, count: int, prompt: int, output: int) -> float:
    """Tokens a second: of output, or of the prompt where the output is a single token."""
    started = time.perf_counter()
    for index in range(count):
        tokens = tuple(range(100 + index, 100 + index + prompt))
        sampling = SamplingParams(max_tokens=output, temperature=0)
        streams.submit(EngineRequest(f"{name} {index}", tokens, sampling))
    for index in range(count):
        await streams.tokens(f"{name} {index}")
    return count * (output if output > 1 else prompt) / (time.perf_counter() - started)


async def standby_cost(
    model: Model, stages: list[tuple[int, int]], degrees: list[int], stores: Stores
) -> str:
    """Memory that a second engine's processes have for themselves, and bytes read for it."""

    def bytes_read() -> int:
        total = 0
        for path in stores.sockets:
            with StoreClient(path) as store:
                total += sum(store.stats().bytes_read.values())
        return total

    with StoreClient(stores.sockets[0]) as store:
        weights = store.stats().weight_bytes
    before = bytes_read()
    launch = launch_of(model, stages, degrees, stores, engine_id="next", max_length=1024)
    with EngineProcesses(launch) as engine:
        await asyncio.to_thread(engine.wait_ready)
        private = anonymous(engine.ranks[0].pid)
    return (
        f"rank 0 {private / MB:.0f} MB, of which torch {torch_alone() / MB:.0f}; "
        f"weights {weights / MB:.0f} MB, read again {bytes_read() - before}"
    )


def torch_alone() -> int:
    """Anonymous memory of a process that has imported torch, and nothing else."""
    import subprocess
    import sys

    code = "import sys, torch; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        size = anonymous(process.pid)
        process.communicate()
    return size


def anonymous(pid: int) -> int:
    """Bytes of memory that is this process's own and no file's."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no smaps_rollup")


if __name__ == "__main__":
    main()
