"""The gap that a stream sees when its engine goes: planned migration, SIGKILL and SIGSTOP.

    python benchmarks/resume_stall.py [--streams 8] [--tokens 400] [--repeat 5] [--json]

Two simulated engines with the given time to first token and between tokens, no front door.  The
stall is the longest gap of a stream that moved; the ordinary gap is the median of all others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

import attrs

from shuntserve_core.journal import Journal
from shuntserve_core.link import LinkClient
from shuntserve_core.runtime.dispatcher import Dispatcher
from shuntserve_core.types.request import SamplingParams, StepOutput
from shuntserve_plugins.balancers.weighted import WeightedRoundRobin
from shuntserve_plugins.engines.simulated import SimulatedSpec
from shuntserve_plugins.engines.simulated_steps import made_up_output

VOCAB = 30_000


class Stream:
    """A sink that notes when tokens come."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.times: list[float] = []
        self.done = asyncio.Event()

    def on_output(self, output: StepOutput) -> None:
        self.times += [time.perf_counter()] * len(output.tokens)
        if output.finish is not None:
            self.done.set()

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def start(spec: SimulatedSpec) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "shuntserve_plugins.engines.simulated_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(attrs.asdict(spec)) + "\n")
    process.stdin.flush()
    return process, json.loads(process.stdout.readline())["address"]


async def once(arguments: argparse.Namespace, event: str) -> tuple[list[float], list[float]]:
    spec = SimulatedSpec(
        "e", "m", VOCAB, 256, 10**5, "t", "127.0.0.1", arguments.ttft, arguments.tpot, 0.0, 1, 0.0
    )
    engines = [start(attrs.evolve(spec, engine_id=name)) for name in "ab"]
    dispatcher = Dispatcher(WeightedRoundRobin())
    for name, (_, address) in zip("ab", engines, strict=True):
        link = await LinkClient.connect(address, "t")
        await link.activate()
        dispatcher.add_pipeline(name, link, 1.0, 256)
    streams = []
    for i in range(arguments.streams):
        sampling = SamplingParams(arguments.tokens, seed=i)
        streams.append(Stream(Journal(f"s{i}", (i, 2, 3), sampling)))
        dispatcher.submit(streams[-1].journal, streams[-1])
    while len(streams[-1].times) < arguments.tokens // 4:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    if event == "planned":
        dispatcher.migrate("a")
    else:
        os.kill(engines[0][0].pid, getattr(signal, event))
    for stream in streams:
        await stream.done.wait()
        expected = made_up_output(stream.journal.prompt, stream.journal.sampling, VOCAB)
        assert stream.journal.output == expected
    for process, _ in engines:
        process.kill()
        process.wait()
    moved = [stream for stream in streams if stream.journal.attempts > 1]
    ordinary = [gap for stream in streams for gap in stream.gaps]
    return [max(stream.gaps) for stream in moved], ordinary


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for event in ("planned", "SIGKILL", "SIGSTOP"):
        stalls: list[float] = []
        gaps: list[float] = []
        for _ in range(arguments.repeat):
            more, ordinary = await once(arguments, event)
            stalls += more
            gaps += ordinary
        report[event] = {
            "streams_moved": len(stalls),
            "stall_median_ms": 1e3 * statistics.median(stalls),
            "stall_worst_ms": 1e3 * max(stalls),
            "ordinary_gap_ms": 1e3 * statistics.median(gaps),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--ttft", type=float, default=0.01)
    parser.add_argument("--tpot", type=float, default=0.005)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    report = asyncio.run(measure(arguments))
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for event, row in report.items():
        print(
            f"{event:8} {row['streams_moved']} streams moved, each token right; stall median "
            f"{row['stall_median_ms']:.1f} ms, worst {row['stall_worst_ms']:.1f} ms "
            f"(ordinary gap {row['ordinary_gap_ms']:.1f} ms)"
        )


if __name__ == "__main__":
    main()
