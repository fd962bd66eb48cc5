"""The gap that clients see when their pipeline goes, through the real front door.

    python benchmarks/stall.py [CONFIG] [--events 10] [--kinds planned,rank0,rank,agent] [--json]

Serves CONFIG (by default a small cluster with simulated engines: 10 ms to the first token, 5 ms
between tokens), keeps streams running, and has a pipeline replaced after a notice, or kills the
process of its first rank, of another rank, or the agent of its first node.

The stall of an event is the longest gap, over all streams, that began before the event or at most
0.1 s after it.  The ordinary gap is the mean of all gaps.  Part of a stall is inherent: the tokens
of the requests that moved are computed once more.  How long that takes is measured with a prompt of
its own, and what is left beyond it and an ordinary step is printed too (embedded engine only: the
time of a simulated prefill does not depend on its length).  The dispatcher's mean counts
from the moment that a request has lost its engine until its next token, over all requests.
What a switch took is printed part by part (`docs/explanation/interruptions.md`): means of all.

    python benchmarks/stall.py --engine vllm --kinds planned --events 3 --streams 4 --tokens 64
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from common import Load, simulated_config

from shuntserve_core.testing.chaos import cluster as chaos
from shuntserve_core.testing.chaos.__main__ import own_config
from shuntserve_core.testing.chaos.cluster import Served, serving
from shuntserve_core.testing.chaos.disturbances import settled

KINDS = ("planned", "rank0", "rank", "agent")
CONFIGS = {"embedded": "quickstart.toml", "vllm": "quickstart-vllm.toml"}
START_SECONDS = 600.0
"""What a cluster may take to serve: ranks import vLLM first."""
BEGAN_AFTER = 0.1
AWAY = 2.0
"""Seconds that a node stays away."""


def stall(load: Load, at: float) -> float:
    """Longest gap of a stream around that time."""
    around = [
        gap
        for answer in load.answers
        for when, gap in answer.gaps
        if when > at and when - gap < at + BEGAN_AFTER
    ]
    return max(around, default=0.0)


async def happen(served: Served, kind: str, notice: float) -> float:
    """Have it happen to a busy pipeline; the time at which it did."""
    run = await busy(served, several=kind == "rank")
    node = run["stages"][0]["node"]
    if kind == "planned":
        told = time.time()
        await served.tell(node, "notice", notice)
        at = await moved(served, run["name"], told)
        await asyncio.sleep(max(0.0, told + notice + AWAY - time.time()))
        await served.tell(node, "restored")
        return at
    if kind == "agent":
        victim = served.agent_pid(node)
    else:
        workers = await served.workers(run["engine_id"])
        victim = workers[0] if kind == "rank0" else random.choice([*workers.values()][1:])
    at = time.time()
    os.kill(victim, signal.SIGKILL)
    if kind == "agent":
        await asyncio.sleep(AWAY)
        await served.tell(node, "restored")
    return at


async def busy(served: Served, *, several: bool) -> dict[str, Any]:
    """A pipeline that has requests, and several workers if need be."""
    while True:
        for run in (await served.status())["pipelines"]:
            enough = not several or len(await served.workers(run["engine_id"])) > 1
            if run["state"] == "serving" and run["running"] and enough:
                return dict(run)
        await asyncio.sleep(0.1)


async def has_ranks(served: Served) -> bool:
    """Whether any engine has more than one process."""
    runs = (await served.status())["pipelines"]
    return any([len(await served.workers(run["engine_id"])) > 1 for run in runs])


async def moved(served: Served, name: str, since: float) -> float:
    """When that pipeline's requests went elsewhere."""
    while True:
        for line in (await served.status())["history"]:
            ours = line["what"] == "requests move" and line["pipeline"] == name
            if ours and line["time"] >= since:
                return float(line["time"])
        await asyncio.sleep(0.2)


async def recomputed(served: Served) -> int:
    """Tokens that were computed again for requests that moved, so far."""
    return int((await served.status())["requests"]["counters"]["recomputed_tokens"])


async def switches(served: Served) -> dict[str, float]:
    """Mean of each part of all switches, ms."""
    parts = (await served.status())["requests"]["durations"].get("switch", {})
    return {part: 1e3 * row["seconds"] / sum(row["counts"]) for part, row in parts.items()}


async def prefill_rate(served: Served, model: str, tokens: int) -> float:
    """Prompt tokens a second, the cluster being idle: median of three prompts."""
    rates = []
    for number in range(3):
        prompt = [100 + (number + token) % 300 for token in range(tokens)]
        body = {"model": model, "prompt": prompt, "max_tokens": 1}
        started = time.perf_counter()
        async with served.session.post(f"{served.url}/v1/completions", json=body) as response:
            response.raise_for_status()
            await response.read()
        rates.append(tokens / (time.perf_counter() - started))
    return statistics.median(rates)


async def measure(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    load = await Load.on(served, options.tokens)
    streams = load.start(options.streams)
    report: dict[str, Any] = {}
    for kind in options.kinds.split(","):
        if kind == "rank" and not await has_ranks(served):
            continue
        stalls, again = [], []
        for _ in range(options.events):
            await settled(served, 300.0)
            before = await recomputed(served)
            at = await happen(served, kind, options.notice)
            await asyncio.sleep(options.after)
            stalls.append(1e3 * stall(load, at))
            again.append(await recomputed(served) - before)
            sys.stderr.write(f"{kind}: {stalls[-1]:.1f} ms, {again[-1]} tokens again\n")
        report[kind] = {"events": len(stalls), "stalls_ms": stalls, "recomputed_tokens": again}
    failed = await load.end(streams)
    gaps = [gap for answer in load.answers for _, gap in answer.gaps]
    ordinary = 1e3 * statistics.fmean(gaps)
    await settled(served, 300.0)
    rate = await prefill_rate(served, load.model, options.prefill)
    for row in report.values():
        each = zip(row["stalls_ms"], row["recomputed_tokens"], strict=True)
        row["beyond_ms"] = [took - ordinary - 1e3 * tokens / rate for took, tokens in each]
    return {
        "ordinary_gap_ms": ordinary,
        "prefill_tokens_a_second": rate,
        "streams_failed": failed,
        "kinds": report,
        "durations": (await served.status())["requests"]["durations"]["stall"],
        "switch_ms": await switches(served),
    }


@asynccontextmanager
async def cluster(config: Path | None) -> AsyncIterator[Served]:
    with tempfile.TemporaryDirectory(prefix="stall-") as scratch:
        directory = Path(scratch)
        own = simulated_config(directory) if config is None else own_config(config, directory)
        async with serving(own, directory / "state", directory / "serve.log") as served:
            yield served


async def run(options: argparse.Namespace) -> dict[str, Any]:
    config = options.config
    if config is None and options.engine != "simulated":
        config = Path(__file__).parent.parent / "examples" / CONFIGS[options.engine]
    async with cluster(config) as served:
        return await measure(served, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path, nargs="?")
    parser.add_argument("--engine", choices=("simulated", *CONFIGS), default="simulated")
    parser.add_argument("--events", type=int, default=10)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--after", type=float, default=1.0, help="seconds to watch after an event")
    parser.add_argument("--notice", type=float, default=8.0, help="seconds of a notice")
    parser.add_argument("--prefill", type=int, default=256, help="tokens to measure prefill with")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chaos.START_SECONDS = START_SECONDS
    report = asyncio.run(run(options))
    if options.json:
        print(json.dumps(report, indent=2))
        return
    print(
        f"ordinary gap {report['ordinary_gap_ms']:.1f} ms, "
        f"prefill {report['prefill_tokens_a_second']:.0f} tokens/s, load {os.getloadavg()[0]:.1f}"
    )
    for kind, row in report["kinds"].items():
        stalls = row["stalls_ms"]
        print(
            f"{kind:8} {row['events']} events: stall median {statistics.median(stalls):.1f} ms, "
            f"worst {max(stalls):.1f} ms; {statistics.median(row['recomputed_tokens']):.0f} tokens "
            f"again; beyond that and a step {statistics.median(row['beyond_ms']):.1f} ms, "
            f"worst {max(row['beyond_ms']):.1f} ms"
        )
    for kind, row in report["durations"].items():
        moved_requests = sum(row["counts"])
        mean = 1e3 * row["seconds"] / moved_requests
        print(f"{kind}: {moved_requests} requests had their next token after {mean:.1f} ms (mean)")
    for part, took in report["switch_ms"].items():
        print(f"switch, {part}: {took:.1f} ms (mean)")
    print(f"streams failed: {report['streams_failed']}")


if __name__ == "__main__":
    main()
