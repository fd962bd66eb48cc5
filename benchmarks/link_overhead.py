"""What the link costs: tokens a second through one link, round trips, and time to notice a loss.

    python benchmarks/link_overhead.py [--requests 256] [--steps 400] [--json]

The engine's half runs in a process of its own and makes no tokens: it sends one prepared step after
the other.  Processor time of both halves is reported, so that the figures hold on a busy machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

from shuntserve_core.interfaces.link import READY
from shuntserve_core.link import LinkClient, LinkServer
from shuntserve_core.types.request import (
    EngineInfo,
    EngineLoad,
    EngineRequest,
    SamplingParams,
    StepOutput,
)

TOKEN = "benchmark"


class Source:
    """An engine that answers by prepared steps."""

    def __init__(self, requests: int, steps: int) -> None:
        self.ids: list[str] = []
        self.wanted, self.steps = requests, steps
        info = EngineInfo("bench", "bench", "none", requests, 10**6)
        self.server = LinkServer(info, self, TOKEN)
        self.go = False

    def submit(self, request: EngineRequest) -> None:
        if len(request.prompt) == 1:  # a round trip
            self.server.send_step([StepOutput(request.id, (1,), finish="stop")])
            return
        self.ids.append(request.id)
        self.go = len(self.ids) == self.wanted

    def abort(self, request_id: str) -> None: ...

    def activate(self) -> None:
        self.server.announce(READY)

    def load(self) -> EngineLoad:
        return EngineLoad()

    def run(self, pipe: Connection) -> None:
        pipe.send(self.server.start())
        while True:
            while not self.go:
                time.sleep(0.001)
            self.go, ids, self.ids = False, self.ids, []
            began = time.process_time()
            for step in range(self.steps):
                finish = "length" if step == self.steps - 1 else None
                self.server.send_step([StepOutput(i, (step,), finish=finish) for i in ids])
                while len(self.server._steps) > 4:
                    time.sleep(0.0001)
            while self.server._steps:
                time.sleep(0.0001)
            pipe.send(time.process_time() - began)


def engine(pipe: Connection, requests: int, steps: int) -> None:
    Source(requests, steps).run(pipe)


def request(name: str, *prompt: int) -> EngineRequest:
    return EngineRequest(name, prompt, SamplingParams(10**6))


async def throughput(link: LinkClient, pipe: Connection, requests: int, steps: int) -> Any:
    done, left, heard = asyncio.Event(), requests, 0

    def hear(output: StepOutput) -> None:
        nonlocal left, heard
        heard += len(output.tokens)
        if output.finish is not None:
            left -= 1
            if not left:
                done.set()

    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(requests):
        link.submit(request(f"chatcmpl-{i:08d}", 1, 2), hear)
    await done.wait()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    sender = await asyncio.to_thread(pipe.recv)
    assert heard == requests * steps
    return {
        "requests": requests,
        "tokens_per_second": heard / wall,
        "client_cpu_us_per_token": 1e6 * cpu / heard,
        "engine_cpu_us_per_token": 1e6 * sender / heard,
        "tokens_per_second_per_client_core": heard / cpu,
    }


async def round_trips(link: LinkClient, count: int) -> dict[str, float]:
    seconds = []
    for i in range(count):
        done = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        link.submit(request(f"r{i}", 1), done.set_result)
        await done
        seconds.append(time.perf_counter() - began)
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_us": 1e6 * cuts[49], "p99_us": 1e6 * cuts[98], "worst_us": 1e6 * max(seconds)}


async def losses(requests: int, steps: int) -> dict[str, float]:
    found = {}
    for name in ("SIGKILL", "SIGSTOP"):
        process, pipe, address = start(requests, steps)
        link = await LinkClient.connect(address, TOKEN)
        await link.activate()
        await asyncio.sleep(0.5)
        lost = asyncio.get_running_loop().create_future()
        link.on_lost(lost.set_result)
        began = time.perf_counter()
        assert process.pid is not None
        os.kill(process.pid, getattr(signal, name))
        await lost
        found[f"{name}_noticed_ms"] = 1e3 * (time.perf_counter() - began)
        process.kill()
        process.join()
        pipe.close()
    return found


def start(requests: int, steps: int) -> tuple[multiprocessing.Process, Connection, str]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=engine, args=(theirs, requests, steps), daemon=True)
    process.start()
    return process, ours, ours.recv()


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {"throughput": []}
    for requests in (1, 32, arguments.requests):
        steps = max(arguments.steps * arguments.requests // requests // 4, arguments.steps)
        process, pipe, address = start(requests, steps)
        link = await LinkClient.connect(address, TOKEN)
        await link.activate()
        report["throughput"].append(await throughput(link, pipe, requests, steps))
        if requests == 1:
            report["round_trip"] = await round_trips(link, 2000)
        link.close()
        process.kill()
        process.join()
    report["loss"] = await losses(1, 1)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        import uvloop

        report = uvloop.run(measure(arguments))
        report["loop"] = "uvloop"
    except ImportError:
        report = asyncio.run(measure(arguments))
        report["loop"] = "asyncio"
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    for row in report["throughput"]:
        print(
            f"{row['requests']:4} requests a step: {row['tokens_per_second']:9,.0f} tokens/s; "
            f"{row['client_cpu_us_per_token']:.2f} us/token here, "
            f"{row['engine_cpu_us_per_token']:.2f} us/token there; "
            f"{row['tokens_per_second_per_client_core']:9,.0f} tokens/s a client core"
        )
    trip = report["round_trip"]
    print(f"round trip: p50 {trip['p50_us']:.0f} us, p99 {trip['p99_us']:.0f} us")
    for name, value in report["loss"].items():
        print(f"{name}: {value:.1f}")


if __name__ == "__main__":
    main()
