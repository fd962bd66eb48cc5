"""All four strategies on the same trace: downtime, throughput, stalls, work and reads done again.

    python benchmarks/strategies.py [CONFIG] [--seconds 60] [--notice 12] [--json]

Serves CONFIG (by default a small cluster with simulated engines that take 4 s to start and read no
weights) once with each strategy, under streams that follow each other.  The trace: the first node
of the first pipeline gets a notice at a sixth of the time and comes back at a half; the last node
of the last pipeline is lost without one at two thirds.

Downtime is the time without any pipeline that serves; the wait is the longest gap of a stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Load, simulated_config

from shuntserve_core.config.serving import STRATEGIES
from shuntserve_core.testing.chaos.__main__ import own_config
from shuntserve_core.testing.chaos.cluster import Served, serving
from shuntserve_core.testing.chaos.disturbances import settled

POLL = 0.1


async def one(strategy: str, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="strategies-") as scratch:
        directory = Path(scratch)
        if options.config is None:
            own = simulated_config(directory, nodes=3, start=4.0, tpot=0.02, strategy=strategy)
        else:
            own = own_config(options.config, directory, strategy=strategy)
        async with serving(own, directory / "state", directory / "serve.log") as served:
            return await measure(served, options)


async def measure(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    load = await Load.on(served, options.tokens)
    await settled(served, 300.0)
    before = await served.status()
    streams = load.start(options.streams)
    began = time.time()
    replaying = asyncio.create_task(replay(served, before, options))
    down = 0.0
    while time.time() - began < options.seconds:
        asked = time.time()
        runs = (await served.status())["pipelines"]
        await asyncio.sleep(POLL)
        if not any(run["state"] == "serving" for run in runs):
            down += time.time() - asked
    after = await served.status()
    failed = await load.end(streams)
    await replaying
    counters = after["requests"]["counters"]
    read = {node["name"]: node["weights_read_bytes"] for node in before["nodes"]}
    taken = {events_node(before, 0), events_node(before, -1)}
    gaps = [gap for answer in load.answers for when, gap in answer.gaps if when > began]
    return {
        "downtime_seconds": down,
        "tokens_per_second": counters["output_tokens"] / (time.time() - began),
        "longest_wait_seconds": max(gaps),
        "ordinary_gap_seconds": statistics.median(gaps),
        "tokens_recomputed": counters["recomputed_tokens"],
        "moved": counters["migrated_planned"] + counters["migrated_unplanned"],
        "weights_read_bytes": sum(
            node["weights_read_bytes"] - read.get(node["name"], 0) * (node["name"] not in taken)
            for node in after["nodes"]
        ),
        "weights_read_by_survivors_bytes": sum(
            node["weights_read_bytes"] - read[node["name"]]
            for node in after["nodes"]
            if node["name"] in read and node["name"] not in taken
        ),
        "streams_failed": failed,
    }


def events_node(status: dict[str, Any], which: int) -> str:
    """First node of the first pipeline, or last of the last."""
    runs = sorted(status["pipelines"], key=lambda run: str(run["name"]))
    return str(runs[which]["stages"][which]["node"])


async def replay(served: Served, status: dict[str, Any], options: argparse.Namespace) -> None:
    first, last = events_node(status, 0), events_node(status, -1)
    trace = (
        (options.seconds / 6, first, "notice", options.notice),
        (options.seconds / 2, first, "restored", None),
        (options.seconds * 2 / 3, last, "lost", None),
    )
    began = time.time()
    for at, node, kind, notice in trace:
        await asyncio.sleep(max(0.0, began + at - time.time()))
        await served.tell(node, kind, notice)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    return {strategy: await one(strategy, options) for strategy in STRATEGIES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the trace")
    parser.add_argument("--notice", type=float, default=12.0)
    parser.add_argument("--streams", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = asyncio.run(run(options))
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(f"load {os.getloadavg()[0]:.1f}")
    print("| strategy | down s | tokens/s | longest wait s | recomputed | MB read | by survivors |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for strategy, row in report.items():
        print(
            f"| {strategy} | {row['downtime_seconds']:.1f} | {row['tokens_per_second']:.0f} "
            f"| {row['longest_wait_seconds']:.2f} | {row['tokens_recomputed']:,} "
            f"| {row['weights_read_bytes'] / 1e6:.0f} "
            f"| {row['weights_read_by_survivors_bytes'] / 1e6:.0f} |"
        )
    print(f"streams failed: {sum(row['streams_failed'] for row in report.values())}")


if __name__ == "__main__":
    main()
