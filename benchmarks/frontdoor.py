"""The front door alone: streams a second, added time to first token, memory.

    python benchmarks/frontdoor.py [--seconds 4] [--router /path/to/vllm-router]
    python benchmarks/frontdoor.py --peers [--rounds 5] [--router ...]
    python benchmarks/frontdoor.py --other /path/to/another/checkout [--rounds 5] [--router ...]

Servers run on one core, the load (wrk, which must be installed) on another.  A stream has 16
tokens; the engine behind the front door answers from a script as fast as it is asked, so that all
the time is the front door's.  With --router the same load also goes through vllm-router, pinned to
the same core, over a mock OpenAI backend that runs beside the load and sends 16 events.

Then a server that does the same work takes turns with this front door: vLLM's own, over a scripted
engine (frontdoor_vllm.py), with the same model folder and requests.  A router only forwards bytes
that such a server has made.  --peers does nothing but that.  With --other it is the front door of
another checkout, say of an earlier commit, that takes turns with this one, and with --peers vLLM's
server too.  What is told are medians of rounds and of their ratios to the first: what a busy
neighbour does to one it does to both.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import cast

import uvloop
from attrs import frozen
from frontdoor_load import (
    LOAD_CORE,
    SERVER_CORE,
    TOKENS,
    answers,
    first_token_times,
    free_port,
    load,
    memory,
    pin,
    processor_seconds,
    streams,
)

from shuntserve_core.journal import Journal
from shuntserve_core.runtime.collecting import settle
from shuntserve_core.testing.frontdoors import ScriptedBackend
from shuntserve_core.testing.models import write_tokenizer
from shuntserve_core.types.request import SamplingParams, StepOutput
from shuntserve_plugins.frontdoors.openai.door import OpenAIFrontDoor

CONCURRENCY = (1, 32, 128, 512)
IN_TURNS = (1, 32, 128)
HERE = Path(__file__)
CONFIG = {  # vLLM's server wants an architecture, though nothing loads it
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 600,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
}


async def serve_front_door(folder: str) -> None:
    door = OpenAIFrontDoor(port=0)
    url = await door.start(ScriptedBackend(keep_journals=False), folder, "m")
    settle()  # as `shuntserve serve` does
    print(url, flush=True)
    await asyncio.Event().wait()


class MockBackend(asyncio.Protocol):
    """Answers every POST with the same events, one in each turn of the loop, as engines do."""

    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    event = b'data: {"choices":[{"index":0,"delta":{"content":"token"},"finish_reason":null}]}\n\n'
    last = b"data: [DONE]\n\n"
    plain = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.loop = asyncio.get_running_loop()
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            length = re.search(rb"(?i)content-length: (\d+)", self.buffer[:end])
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < whole:
                return
            post = self.buffer.startswith(b"POST")
            self.buffer = self.buffer[whole:]
            if post:
                self.loop.call_soon(self.send, TOKENS, self.head)
            else:
                self.transport.write(self.plain)

    def send(self, left: int, before: bytes = b"") -> None:
        if self.transport.is_closing():
            return
        framed = b"%x\r\n%b\r\n" % (len(self.event), self.event)
        if left > 1:
            self.transport.write(before + framed)
            self.loop.call_soon(self.send, left - 1)
        else:
            end = b"%x\r\n%b\r\n0\r\n\r\n" % (len(self.last), self.last)
            self.transport.write(framed + end)


async def serve_mock() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(MockBackend, "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


@contextmanager
def child(
    *arguments: str, checkout: Path = HERE.parent.parent, core: int = SERVER_CORE
) -> Iterator[tuple[str, int]]:
    """A server of this file, or of a checkout's, in a process of its own: its URL and its id."""
    with tempfile.TemporaryDirectory() as packages:
        for package, folder in (
            ("shuntserve_core", "shuntserve_core"),
            ("shuntserve_plugins", "plugins"),
        ):
            Path(packages, package).symlink_to(checkout.resolve() / folder)
        command = [sys.executable, str(checkout / "benchmarks" / HERE.name), *arguments]
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": packages},
            preexec_fn=lambda: pin(core),  # noqa: PLW1509 - this process has one thread
        ) as process:
            try:
                assert process.stdout is not None
                yield process.stdout.readline().strip(), process.pid
            finally:
                process.kill()


@contextmanager
def started(name: str, command: Sequence[str], port: int) -> Iterator[tuple[str, int]]:
    """Somebody else's server on the same core, once it answers; what it says if it does not."""
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command,
            stdout=said,
            stderr=said,
            preexec_fn=lambda: pin(SERVER_CORE),  # noqa: PLW1509 - this process has one thread
        ) as process,
    ):
        try:
            if not answers(port, process):
                said.seek(0)
                raise SystemExit(f"{said.read()[-4000:]}\n{name} did not start")
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.kill()


@contextmanager
def router(binary: str, backend: str) -> Iterator[tuple[str, int]]:
    """vllm-router over one backend."""
    port, metrics = free_port(), free_port()
    command = [binary, "--worker-urls", backend, "--policy", "round_robin", "--port", str(port)]
    command += ["--prometheus-port", str(metrics), "--log-level", "critical"]
    with started("vllm-router", command, port) as server:
        yield server


@contextmanager
def vllm_server(folder: str) -> Iterator[tuple[str, int]]:
    """vLLM's own server over a scripted engine."""
    port = free_port()
    command = [sys.executable, str(HERE.with_name("frontdoor_vllm.py")), folder, str(port)]
    with started("vLLM's server", command, port) as server:
        yield server


class _First:
    """Notes when the first token comes."""

    def __init__(self) -> None:
        self.at: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def on_output(self, output: StepOutput) -> None:
        if not self.at.done():
            self.at.set_result(time.perf_counter())


async def direct_times(count: int) -> list[float]:
    """The same engine without a front door: submit to first token."""
    backend = ScriptedBackend(keep_journals=False)
    times = []
    for number in range(count):
        first, began = _First(), time.perf_counter()
        backend.submit(Journal(str(number), (1, 2), SamplingParams(max_tokens=TOKENS)), first)
        times.append(await first.at - began)
        await asyncio.sleep(0)
    return times


def measure(name: str, url: str, pid: int, seconds: int, direct: float) -> dict[int, float]:
    """Print one server's rows; give its streams per processor second by concurrency."""
    port = int(url.rpartition(":")[2])
    first_token_times(port, 200)
    before = memory(pid)
    times = first_token_times(port, 1000)
    p50, p99 = statistics.median(times) * 1e3, sorted(times)[990] * 1e3
    print(f"\n{name}: first token at concurrency 1, p50 {p50:.3f} ms, p99 {p99:.3f} ms", end="")
    print(f" (added to the engine's own: {p50 - direct:.3f} ms); RSS {before:.0f} MB")
    rates = {}
    for concurrency in CONCURRENCY:
        used = processor_seconds(pid)
        rate, middle, tail = load(url, concurrency, seconds)
        used = (processor_seconds(pid) - used) / (rate * seconds)
        rates[concurrency] = 1 / used
        print(
            f"  {concurrency:4d} at once: {rate:7.0f} streams/s, "
            f"{1 / used:7.0f} per processor second"
            f"  whole stream p50 {middle:7.2f} ms  p99 {tail:7.2f} ms  RSS {memory(pid):.0f} MB",
            flush=True,
        )
    return rates


@frozen
class Turn:
    """What one server did with one load for a while."""

    rate: float
    """Streams for each second of its processor time."""
    first: float
    """Median ms to the first text, at one connection or on one more beside the load's."""
    events: int
    """Fewest of a stream: a server that joins tokens under load has less to do."""


def turn(server: tuple[str, int], concurrency: int, seconds: int) -> Turn:
    """Load one server, and watch single streams before or meanwhile."""
    url, pid = server
    watched = streams(int(url.rpartition(":")[2]))
    seen = list(islice(watched, 300)) if concurrency == 1 else []
    used = processor_seconds(pid)
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(load, url, concurrency, seconds)
        while concurrency > 1 and not loaded.done():
            seen.append(next(watched))
        beside = len(seen) if concurrency > 1 else 0
        rate = (loaded.result()[0] * seconds + beside) / (processor_seconds(pid) - used)
    first = statistics.median(first for first, _ in seen) * 1e3
    return Turn(rate, first, min(events for _, events in seen))


def compare(
    servers: Mapping[str, tuple[str, int]], rounds: int, seconds: int, direct: float
) -> None:
    """Serve the same load in turns; print medians of all, and of ratios to the first."""
    turns: dict[tuple[str, int], list[Turn]] = {}
    for number in range(rounds + 1):
        names = list(servers)[:: 1 if number % 2 else -1]
        for concurrency in IN_TURNS:
            for name in names:
                done = turn(servers[name], concurrency, seconds)
                if number:  # the first round warms up
                    turns.setdefault((name, concurrency), []).append(done)
    base = next(iter(servers))
    print("added to the first token: of one more stream beside the load, less the engine's own")
    for name in servers:
        print(name)
        for concurrency in IN_TURNS:
            mine, theirs = turns[name, concurrency], turns[base, concurrency]
            pairs = list(zip(mine, theirs, strict=True))
            rate = statistics.median(a.rate for a in mine)
            share = statistics.median(a.rate / b.rate for a, b in pairs)
            added = statistics.median(a.first - direct for a in mine)
            times = statistics.median((a.first - direct) / (b.first - direct) for a, b in pairs)
            print(
                f"  {concurrency:4d} at once: {rate:7.0f} streams per processor second "
                f"({share:5.2f} of {base}), adds {added:7.2f} ms to the first token "
                f"({times:5.2f}), {min(a.events for a in mine)} events a stream"
            )


def compare_in_turns(options: argparse.Namespace, direct: float) -> None:
    """This front door and whichever are wanted of another checkout's, vLLM's and vllm-router."""
    with ExitStack() as stack:
        folder = write_tokenizer(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "config.json").write_text(json.dumps(CONFIG))
        servers = {"this": stack.enter_context(child("--serve", str(folder)))}
        if options.other:
            other = child("--serve", str(folder), checkout=options.other)
            servers = {"the other": stack.enter_context(other), **servers}
        wanted = options.peers or not options.other
        if wanted and importlib.util.find_spec("vllm"):
            servers["vLLM's server"] = stack.enter_context(vllm_server(str(folder)))
        elif wanted:
            print("vLLM is not installed here, so its server, the peer, is NOT compared")
        if options.router:
            backend, _ = stack.enter_context(child("--mock", core=LOAD_CORE))
            servers["vllm-router"] = stack.enter_context(router(options.router, backend))
        compare(servers, options.rounds, options.seconds, direct)


def measure_alone(options: argparse.Namespace, direct: float) -> None:
    """Tables of one server after the other."""
    with (
        tempfile.TemporaryDirectory() as folder,
        child("--serve", str(write_tokenizer(folder))) as (url, pid),
    ):
        ours = measure("front door", url, pid, options.seconds, direct)
    with child("--mock", core=LOAD_CORE) as (backend, mock_pid):
        measure("mock backend, direct", backend, mock_pid, options.seconds, 0.0)
        if not options.router:
            return
        with router(options.router, backend) as (url, pid):
            theirs = measure("vllm-router", url, pid, options.seconds, 0.0)
    ratios = ", ".join(f"{c}: {ours[c] / theirs[c]:.2f}" for c in CONCURRENCY)
    print(f"\nfront door / vllm-router, streams per processor second: {ratios}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--router", default="", help="path of vllm-router, to compare with")
    parser.add_argument("--other", type=Path, help="another checkout, to compare with in turns")
    parser.add_argument("--peers", action="store_true", help="only vLLM's server, in turns")
    parser.add_argument("--rounds", type=int, default=5, help="of turns")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("--mock", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve_front_door(options.serve))
    if options.mock:
        uvloop.run(serve_mock())
    pin(LOAD_CORE)
    direct = statistics.median(uvloop.run(direct_times(1000))) * 1e3
    print(f"engine alone: first token p50 {direct:.3f} ms")
    if not options.other and not options.peers:
        measure_alone(options, direct)
    compare_in_turns(options, direct)


if __name__ == "__main__":
    main()
