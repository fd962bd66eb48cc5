"""Does the simulator predict what really happens?  A real cluster, with two interruptions.

    python benchmarks/simulator_agreement.py .quickstart

Runs `shuntserve serve` with the embedded engine (the model and weights that `tools/quickstart` or
`shuntserve_core/weights/quickstart.py` makes): two pipelines of one node each, and a spare.  First,
step times are measured through the front door, and one interruption is rehearsed; both become the
simulator's profile.  Then requests come, and two nodes are taken.  The same requests and events are
simulated.  Prints both, their ratios, and how busy the machine was: with other work on the cores,
step times change while they are measured, and no prediction can be better than that.  With
`--engine simulated`, steps are sleeps: that checks all but the arithmetic, on a busy machine too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve, frozen

from shuntserve_core.bench.arrivals import Arrival
from shuntserve_core.bench.calls import Endpoint, Result
from shuntserve_core.bench.load import model_of, run
from shuntserve_core.config import load_config
from shuntserve_core.simulator.placing import place, spares_of
from shuntserve_core.simulator.profile import EMBEDDED, EngineProfile, MeasuredSteps
from shuntserve_core.simulator.recovery import Recovery
from shuntserve_core.simulator.run import Setting, simulate
from shuntserve_core.traces.events import TraceEvent
from shuntserve_core.traces.workload import Requests

CONFIG = """
[model]
path = "{home}/SmolLM2-135M-Instruct"
dtype = "float32"
weight_dtype = "float16"
kv_dtype = "float32"
[weights]
store = "{home}/weights"
model = "HuggingFaceTB/SmolLM2-135M-Instruct"
[workload]
input_tokens = 96
output_tokens = 48
max_length = 512
[[gpu]]
name = "cpu"
memory_bytes = 1_000_000_000
flops = {{ float32 = 40e9 }}
memory_bandwidth = 9e9
[[instance_type]]
name = "solo"
gpu = "cpu"
price = 0.01
network = {{ bandwidth = 2e9, latency = 0.2e-3 }}
[[cluster]]
instance = "solo"
count = 3
[estimator]
max_num_batched_tokens = 64
max_num_seqs = {batch}
runtime_bytes = 0
[optimizer]
whole_instances = true
[serve]
model_name = "agreement"
state_dir = "{state}"
spares = {{ solo = 1 }}
max_batch = {batch}
queue_seconds = 3000
[engine]
{engine}
[frontdoor]
port = {port}
"""
ENGINES = {
    "embedded": 'name = "embedded"',
    # Its steps are sleeps, which other work on the cores does not lengthen.
    "simulated": 'name = "simulated"\ntpot = 0.2\nttft = 0.2\nthroughput = 0\nstart = 4.0',
}
BATCH, PIPELINES, NOTICE = 8, 2, 25.0
PROMPT, ANSWER = 96, 48
OVERLOAD = 3.0
"""Arrivals over capacity.  Near 1, a little noise in step times makes a great one in queues."""


@frozen
class Cluster:
    config: Path
    url: str
    endpoint: Endpoint

    def tell(self, *words: str) -> str:
        """What a `shuntserve` command prints."""
        command = [sys.executable, "-m", "shuntserve_core.cli", *words, "--cluster", self.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    @property
    def name(self) -> str:
        return str(self.config)

    def status(self) -> dict[str, Any]:
        return json.loads(self.tell("status", "--json"))


@contextlib.contextmanager
def serving(home: Path, folder: Path, port: int, engine: str) -> Iterator[Cluster]:
    config = folder / "agreement.toml"
    text = CONFIG.format(
        home=home.resolve(),
        state=folder / "state",
        port=port,
        batch=BATCH,
        engine=ENGINES[engine],
    )
    config.write_text(text)
    with (folder / "serve.log").open("w") as log:
        command = [sys.executable, "-m", "shuntserve_core.cli", "serve", str(config)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            cluster = Cluster(config, url, Endpoint(url, "agreement"))
            _wait(cluster, server, folder)
            yield cluster
        finally:
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait(cluster: Cluster, server: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in range(240):
        if server.poll() is not None:
            raise SystemExit((folder / "serve.log").read_text())
        with contextlib.suppress(Exception):
            asyncio.run(model_of(cluster.url, ""))
            pipelines = cluster.status()["pipelines"]
            if sum(p["state"] == "serving" for p in pipelines) == PIPELINES:
                return
        time.sleep(1)
    raise SystemExit("no pipelines after four minutes")


def closed(
    cluster: Cluster, concurrency: int, count: int, prompt: int, answer: int
) -> list[Result]:
    arrivals = [Arrival(i, None, prompt, answer) for i in range(count)]
    return asyncio.run(
        run(cluster.endpoint, arrivals, concurrency=concurrency, request_seconds=600, seed=1)
    )


def measured_steps(cluster: Cluster) -> MeasuredSteps:
    """Fit step times by loads of different sizes; both pipelines work at once, as in the run."""
    rows: list[tuple[float, ...]] = []
    seconds = []
    for requests, answer in ((1, 24), (4, 24), (8, 24), (8, 160)):
        results = closed(cluster, requests * PIPELINES, requests * PIPELINES, 8, answer)
        rows.append((1.0, requests, requests * (8 + answer / 2)))
        seconds.append(statistics.median(r.tpot for r in results if r.tpot is not None))
    step, sequence, context = _fit(rows, seconds)
    rows, seconds = [], []
    for prompt in (16, 64, 192):
        results = closed(cluster, PIPELINES, PIPELINES * 3, prompt, 2)
        rows.append((-(-prompt // 64), prompt))
        seconds.append(statistics.median(r.ttft for r in results if r.ttft is not None))
    chunk, token = _fit(rows, seconds)
    return MeasuredSteps(
        step=step,
        sequence=sequence,
        context_token=context,
        prompt_token=token,
        prompt_step=max(chunk - step, 0.0),
    )


def _fit(rows: Sequence[tuple[float, ...]], seconds: list[float]) -> list[float]:
    """Least squares of relative errors; what would be negative is left out."""
    matrix = np.array(rows, dtype=float) / np.array(seconds)[:, None]
    columns = list(range(matrix.shape[1]))
    while True:
        found = np.linalg.lstsq(matrix[:, columns], np.ones(len(seconds)), rcond=None)[0]
        if found.min() >= 0:
            break
        del columns[int(found.argmin())]
    fitted = dict(zip(columns, found, strict=True))
    return [float(fitted.get(column, 0.0)) for column in range(matrix.shape[1])]


def rehearse(cluster: Cluster, node: str) -> tuple[float, float]:
    """Take a node away and give it back: seconds to a successor, and to join again."""
    began = time.time()
    cluster.tell("interrupt", node, "--notice", str(NOTICE))
    ready = _await(cluster, "pipeline serves", began)
    time.sleep(max(0.0, began + NOTICE + 2 - time.time()))
    asked = time.time()
    cluster.tell("restore", node)
    joined = _await(cluster, "node joined", asked)
    return ready - began, joined - asked


def _await(cluster: Cluster, what: str, since: float) -> float:
    for _ in range(240):
        for line in cluster.status()["history"]:
            if line["what"] == what and line["time"] >= since:
                return float(line["time"])
        time.sleep(0.5)
    raise SystemExit(f"never: {what}")


def node_of(cluster: Cluster, index: int) -> str:
    pipelines = [p for p in cluster.status()["pipelines"] if p["state"] == "serving"]
    return str(pipelines[index]["stages"][0]["node"])


async def replay(
    cluster: Cluster, requests: Requests, events: list[TraceEvent]
) -> tuple[list[Result], list[TraceEvent]]:
    arrivals = [
        Arrival(i, at, p, a) for i, (at, p, a) in enumerate(zip(*requests.columns(), strict=True))
    ]

    async def act(event: TraceEvent) -> TraceEvent:
        await asyncio.sleep(event.at)
        words = ["restore", event.node]
        if event.kind == "notice":
            words = ["interrupt", event.node, "--notice", str(event.notice)]
        await asyncio.to_thread(cluster.tell, *words)
        return event

    results, *done = await asyncio.gather(
        run(cluster.endpoint, arrivals, concurrency=1, request_seconds=3000, seed=2),
        *(act(event) for event in events),
    )
    return results, list(done)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--engine", choices=ENGINES, default="embedded")
    options = parser.parse_args()
    loads = [os.getloadavg()[0]]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(options.home, Path(folder), options.port, options.engine) as cluster,
    ):
        print(f"load of the machine before: {loads[0]:.1f} on {os.cpu_count()} cores")
        before = measured_steps(cluster)
        print(f"measured: {before}", flush=True)
        ready, joined = rehearse(cluster, node_of(cluster, 0))
        print(f"rehearsed: {ready:.1f} s, {joined:.1f} s", flush=True)
        capacity = _capacity(cluster)
        print(f"{capacity:.2f} requests/s with full batches", flush=True)
        requests = _requests(options.requests, OVERLOAD * capacity)
        length = options.requests / capacity
        first, second = node_of(cluster, 0), node_of(cluster, 1)
        events = [
            TraceEvent(0.15 * length, first, "notice", NOTICE),
            TraceEvent(max(0.5 * length, 0.15 * length + NOTICE + 5), first, "restored"),
            TraceEvent(max(0.7 * length, 0.5 * length + joined + 5), second, "notice", NOTICE),
        ]
        results, _ = asyncio.run(replay(cluster, requests, events))
        after = measured_steps(cluster)
        counters = cluster.status().get("requests", {}).get("counters", {})
        predictions = [
            _predict(
                cluster.config, requests, events, _profile(options.engine, steps), ready, joined
            )
            for steps in (before, _mean(before, after))
        ]
    loads.append(os.getloadavg()[0])
    print(f"load of the machine after: {loads[1]:.1f}")
    _report(results, predictions, before, after, ready, joined)
    print(f"counters of the dispatcher: {counters}")


def _capacity(cluster: Cluster) -> float:
    """Requests a second with full batches."""
    results = closed(cluster, BATCH * PIPELINES, BATCH * PIPELINES, PROMPT, ANSWER)
    return len(results) / max(r.completion for r in results)


def _requests(count: int, rate: float) -> Requests:
    rng = random.Random(3)
    at, rows = 0.0, []
    for _ in range(count):
        rows.append(
            (
                at,
                rng.randint(PROMPT // 2, PROMPT * 3 // 2),
                rng.randint(ANSWER // 2, ANSWER * 3 // 2),
            )
        )
        at += rng.expovariate(rate)
    return Requests.of(*zip(*rows, strict=True))


def _mean(a: MeasuredSteps, b: MeasuredSteps) -> MeasuredSteps:
    names = ("step", "sequence", "context_token", "prompt_token", "prompt_step")
    return MeasuredSteps(**{n: (getattr(a, n) + getattr(b, n)) / 2 for n in names})


def _profile(engine: str, steps: MeasuredSteps) -> EngineProfile:
    profile = evolve(EMBEDDED, sequences=BATCH, measured={"*": steps})
    # The simulated engine reads any number of prompts in a step.
    return profile if engine == "embedded" else evolve(profile, step_tokens=10**6)


def _predict(
    file: Path,
    requests: Requests,
    events: list[TraceEvent],
    profile: EngineProfile,
    ready: float,
    joined: float,
) -> dict[str, Any]:
    config = load_config(file)
    placement = place(config)
    recovery = Recovery(
        boot_seconds=joined,
        weight_bandwidth=1e15,
        start_seconds=ready,
        switch_seconds=0.0,
        replan=True,
    )
    names = {}  # the same nodes, by the order in which pipelines have them
    for event in events:
        names.setdefault(event.node, f"solo#{len(names)}")
    setting = Setting(
        profile=profile,
        recovery=recovery,
        events=tuple(evolve(event, node=names[event.node]) for event in events),
        spares=spares_of(config, placement),
    )
    return simulate(config, placement, requests, setting).summary()


def _report(
    results: list[Result],
    predictions: list[dict[str, Any]],
    before: MeasuredSteps,
    after: MeasuredSteps,
    ready: float,
    joined: float,
) -> None:
    good = [r for r in results if r.success]
    span = max(r.completion for r in good)
    real = {
        "requests/s": len(good) / span,
        "median TTFT": statistics.median(r.ttft for r in good if r.ttft is not None),
        "median TPOT": statistics.median(r.tpot for r in good if r.tpot is not None),
    }
    for name, steps in (("before", before), ("after", after)):
        full = steps.step + BATCH * (steps.sequence + steps.context_token * (PROMPT + ANSWER / 2))
        print(
            f"steps {name}: {1e3 * steps.step:.1f} ms, {1e3 * steps.sequence:.2f} ms a sequence,"
            f" {1e6 * steps.context_token:.1f} us a cached token,"
            f" {1e3 * steps.prompt_token:.2f} ms a prompt token; a full decode {1e3 * full:.1f} ms"
        )
    print(f"a successor serves {ready:.1f} s after a notice; a node is back in {joined:.1f} s")
    print(f"{len(good)} of {len(results)} requests succeeded in {span:.1f} s")
    print("                    real   predicted from before   from before and after")
    for name, value in real.items():
        row = [_of(prediction, name) for prediction in predictions]
        told = "".join(f"{p:14.4f} ({p / value - 1:+.0%})" for p in row)
        print(f"{name:14} {value:9.4f} {told}")


def _of(prediction: dict[str, Any], name: str) -> float:
    if name == "requests/s":
        return float(prediction["requests_per_second"])
    return float(prediction["ttft" if "TTFT" in name else "tpot"]["p50"])


if __name__ == "__main__":
    main()
