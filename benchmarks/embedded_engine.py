"""Speed of the embedded engine, and what a second engine on the same tensor stores costs.

    python -m benchmarks.embedded_engine MODEL_DIR WEIGHT_STORE BASE/MODEL

The weight store must hold the model for the degrees 1 and 3 (`shuntserve weights push --tp 1,3`).
Prints the machine's load first: a busy machine makes every figure worthless.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from shuntserve_core.interfaces.engine import EngineLaunch
from shuntserve_core.tensorstore import StoreClient, StoreStats
from shuntserve_core.types.request import EngineRequest, SamplingParams
from shuntserve_plugins.engines.embedded.engine import Embedded
from shuntserve_plugins.engines.embedded.geometry import read_geometry
from tests.plugins.engines.embedded.forked import TemplateForTests
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
    parser.add_argument("--no-speed", action="store_true", help="measure second engines only")
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
    print("placement                one stream   16 streams      prefill")
    for stages, degrees in placements:
        with tempfile.TemporaryDirectory() as directory, TemplateForTests(Embedded()) as template:
            speed = not options.no_speed
            asyncio.run(measure(model, stages, degrees, Path(directory), template, speed=speed))


async def measure(
    model: Model,
    stages: list[tuple[int, int]],
    degrees: list[int],
    directory: Path,
    template: TemplateForTests,
    *,
    speed: bool,
) -> None:
    with Stores(directory, sum(degrees)) as stores:
        launch = launch_of(model, stages, degrees, stores, max_length=1024)
        for index, rank in enumerate(launch.ranks):
            with StoreClient(rank.store_socket) as store:
                await asyncio.to_thread(store.load, launch.shard(index))
        with EngineProcesses(launch, template) as engine:
            await asyncio.to_thread(engine.wait_ready)
            label = "+".join(f"{b - a}x{t}" for (a, b), t in zip(stages, degrees, strict=True))
            print(f"{label:22}", await speeds(engine) if speed else "")
            launch = launch_of(model, stages, degrees, stores, engine_id="next", max_length=1024)
            print("  a second engine, forked:      ", await second(launch, stores, template))
            print("  a second engine, from nothing:", await second(launch, stores, None))


async def speeds(engine: EngineProcesses) -> str:
    link = await engine.link()
    await link.activate()
    streams = Streams(link)
    one = await rate(streams, "one", 1, 16, 48)
    many = await rate(streams, "many", 16, 16, 48)
    prefill = await rate(streams, "prefill", 1, 512, 1)
    link.close()
    return f"{one:7.1f} tok/s {many:6.1f} tok/s {prefill:6.0f} tok/s"


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


async def second(launch: EngineLaunch, stores: Stores, template: TemplateForTests | None) -> str:
    """What an engine that stands by beside another costs until then."""

    def stored(count: Callable[[StoreStats], int]) -> int:
        total = 0
        for path in stores.sockets:
            with StoreClient(path) as store:
                total += count(store.stats())
        return total

    before = stored(lambda stats: sum(stats.bytes_read.values()))
    started = time.perf_counter()
    with EngineProcesses(launch, template) as engine:
        await asyncio.to_thread(engine.wait_ready)
        wall = time.perf_counter() - started
        ranks = [psutil.Process(rank.pid) for rank in engine.ranks]
        own = [rank.memory_full_info().uss for rank in ranks]
        cpu = sum(sum(rank.cpu_times()[:2]) for rank in ranks)
    weights = stored(lambda stats: stats.weight_bytes)
    again = stored(lambda stats: sum(stats.bytes_read.values())) - before
    sizes = " + ".join(f"{size / MB:.1f}" for size in own)
    return (
        f"{wall:5.1f} s, {cpu:.2f} s of processor; {sizes} MB of its own, "
        f"{sum(own) / weights:.1%} of {weights / MB:.0f} MB of weights; read again {again} bytes"
    )


if __name__ == "__main__":
    main()
