"""Streams on vLLM while one node is noticed and a far rank of another engine is killed.

    python benchmarks/vllm_quickstart.py examples/quickstart-vllm.toml --streams 100

Prints whether every stream is what it is without disturbance, how long streams stood still, how
soon the loss was noticed, when replacements served, and what surviving nodes read of weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from shuntserve_core.testing.chaos import cluster
from shuntserve_core.testing.chaos.__main__ import own_config
from shuntserve_core.testing.chaos.client import Answer, ask
from shuntserve_core.testing.chaos.cluster import Served, serving
from shuntserve_core.testing.chaos.requests import Asked

SUBJECTS = ("a fox", "the river", "a lighthouse", "a robot", "snow", "a ship", "a violin", "tea")


def asked(model: str, count: int, tokens: int) -> list[Asked]:
    """Distinct greedy completions."""
    return [
        Asked(
            f"stream {i}",
            "/v1/completions",
            {
                "model": model,
                "prompt": f"Story {i}, about {SUBJECTS[i % len(SUBJECTS)]}: Once upon a time",
                "max_tokens": tokens,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        )
        for i in range(count)
    ]


async def stream(served: Served, requests: list[Asked], at_once: int) -> list[Answer]:
    """All of them, some at a time."""
    room = asyncio.Semaphore(at_once)

    async def one(request: Asked) -> Answer:
        async with room:
            return await ask(served.session, served.url, request)

    return await asyncio.gather(*(one(request) for request in requests))


async def until_serving(served: Served, count: int, seconds: float) -> dict[str, Any]:
    """Wait for so many serving pipelines, and none on its way."""
    async with asyncio.timeout(seconds):
        while True:
            status = await served.status()
            states = [run["state"] for run in status["pipelines"]]
            if states.count("serving") >= count and set(states) == {"serving"}:
                return status
            await asyncio.sleep(0.1)


async def disturb(served: Served, notice: float, seconds: float) -> dict[str, Any]:
    """Notice a node of one pipeline, then kill a far rank of another; what happened when."""
    status = await until_serving(served, 2, seconds)
    first, second = sorted(status["pipelines"], key=lambda run: len(run["stages"]))[:2]
    read = {node["name"]: node["weights_read_bytes"] for node in status["nodes"]}
    node = first["stages"][-1]["node"]
    began = time.time()
    await served.tell(node, "notice", notice)
    successor = await _replaced(served, first["engine_id"], seconds)
    noticed = {
        "node": node,
        "replacement_serves_after": round(time.time() - began, 2),
        "switch_seconds": successor.get("switch_seconds"),
    }
    workers = await served.workers(second["engine_id"])
    victim = max(workers)
    began = time.time()
    os.kill(workers[victim], signal.SIGKILL)
    while second["engine_id"] in {  # noqa: ASYNC110 - it is in another process
        run["engine_id"]
        for run in (await served.status())["pipelines"]
        if run["state"] == "serving"
    }:
        await asyncio.sleep(0.01)
    detected = time.time() - began
    await until_serving(served, 2, seconds)
    after = {n["name"]: n["weights_read_bytes"] for n in (await served.status())["nodes"]}
    return {
        "notice": noticed,
        "kill": {
            "rank": victim,
            "of": len(workers),
            "noticed_after": round(detected, 3),
            "replacement_serves_after": round(time.time() - began, 2),
        },
        "weights_read_by_survivors": {
            name: after[name] - had for name, had in read.items() if name in after
        },
    }


async def _replaced(served: Served, engine_id: str, seconds: float) -> dict[str, Any]:
    """Wait until an engine is gone and all that is there serves; the youngest pipeline."""
    async with asyncio.timeout(seconds):
        while True:
            runs = (await served.status())["pipelines"]
            serving_now = [run for run in runs if run["state"] == "serving"]
            gone = engine_id not in {run["engine_id"] for run in runs}
            if gone and len(serving_now) == len(runs) >= 2:
                return max(serving_now, key=lambda run: run["serving_since"])
            await asyncio.sleep(0.05)


async def measure(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    """The same streams without and with disturbance."""
    began = time.time()
    status = await until_serving(served, 2, options.seconds)
    started = time.time() - began
    async with served.session.get(f"{served.url}/v1/models") as response:
        model = (await response.json())["data"][0]["id"]
    requests = asked(model, options.streams, options.tokens)
    expected = await stream(served, requests, options.at_once)
    if not all(answer.complete for answer in expected):
        raise SystemExit(f"undisturbed streams fail: {expected[0].error}")
    disturbing = asyncio.create_task(disturb(served, options.notice, options.seconds))
    answers: list[Answer] = []
    while not disturbing.done():
        answers += await stream(served, requests, options.at_once)
    gaps = sorted(gap for answer in answers for _, gap in answer.gaps)
    texts = {answer.asked.name: answer for answer in expected}
    return {
        "both_serve_after": round(started, 1),
        "placement": [
            [(s["tensor_parallel"], s["layers"]) for s in run["stages"]]
            for run in status["pipelines"]
        ],
        "streams": len(answers),
        "complete": sum(answer.complete for answer in answers),
        "equal": sum(answer.same_as(texts[answer.asked.name]) for answer in answers),
        "errors": sorted({answer.error for answer in answers if answer.error})[:5],
        "longest_gap": round(gaps[-1], 3),
        "median_gap": round(gaps[len(gaps) // 2], 3),
        **disturbing.result(),
    }


async def main(options: argparse.Namespace) -> None:
    """Serve a copy of the configuration, and print the figures."""
    cluster.START_SECONDS = options.seconds
    with tempfile.TemporaryDirectory(prefix="vllm-") as scratch:
        directory = Path(scratch)
        config, log = own_config(options.config, directory), options.log or directory / "serve.log"
        async with serving(config, directory / "state", log) as served:
            print(json.dumps(await measure(served, options), indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--at-once", type=int, default=12)
    parser.add_argument("--notice", type=float, default=240.0, help="seconds of the notice")
    parser.add_argument("--seconds", type=float, default=900.0, help="most that a step may take")
    parser.add_argument("--log", type=Path, help="where to write what the cluster says")
    asyncio.run(main(parser.parse_args()))
