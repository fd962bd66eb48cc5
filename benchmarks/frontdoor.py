"""The front door alone: streams a second, added time to first token, memory.

    python benchmarks/frontdoor.py [--seconds 4] [--router /path/to/vllm-router]
    python benchmarks/frontdoor.py --other /path/to/another/checkout [--rounds 5] [--router ...]

Servers run on one core, the load (wrk, which must be installed) on another.  A stream has 16
tokens; the engine behind the front door answers from a script as fast as it is asked, so that all
the time is the front door's.  With --router the same load also goes through vllm-router, pinned to
the same core, over a mock OpenAI backend that runs beside the load and sends 16 events.

With --other the front door of another checkout, say of an earlier commit, serves the same load in
turns with this one, and what is told are medians of rounds and of their ratios: what a busy
neighbour does to one it does to both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import uvloop

from shuntserve_core.journal import Journal
from shuntserve_core.runtime.collecting import settle
from shuntserve_core.testing.frontdoors import ScriptedBackend
from shuntserve_core.testing.models import write_tokenizer
from shuntserve_core.types.request import SamplingParams, StepOutput
from shuntserve_plugins.frontdoors.openai.door import OpenAIFrontDoor

TOKENS = 16
CONCURRENCY = (1, 32, 128, 512)
PATH = "/v1/chat/completions"
BODY = json.dumps(
    {
        "model": "m",
        "messages": [{"role": "user", "content": "The quick brown fox jumps over the lazy dog."}],
        "max_tokens": TOKENS,
        "stream": True,
    }
)
HERE = Path(__file__)
SERVER_CORE, LOAD_CORE = 0, 1


def pin(core: int) -> None:
    """Keep this process on one core, where the machine has two."""
    if len(os.sched_getaffinity(0)) > core:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[core]})


async def serve_front_door(folder: str) -> None:
    pin(SERVER_CORE)
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
    pin(LOAD_CORE)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(MockBackend, "127.0.0.1", 0, backlog=4096)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


@contextmanager
def child(*arguments: str, checkout: Path = HERE.parent.parent) -> Iterator[tuple[str, int]]:
    """A server of this file, or of a checkout's, in a process of its own: its URL and its id."""
    with tempfile.TemporaryDirectory() as packages:
        for package, folder in (
            ("shuntserve_core", "shuntserve_core"),
            ("shuntserve_plugins", "plugins"),
        ):
            Path(packages, package).symlink_to(checkout.resolve() / folder)
        command = [sys.executable, str(checkout / "benchmarks" / HERE.name), *arguments]
        with _running(command, {**os.environ, "PYTHONPATH": packages}) as process:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process.pid


@contextmanager
def _running(command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=dict(environment)
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def router(binary: str, backend: str) -> Iterator[tuple[str, int]]:
    """vllm-router over one backend, once it answers."""
    port, metrics = free_port(), free_port()
    command = [binary, "--worker-urls", backend, "--policy", "round_robin", "--port", str(port)]
    command += ["--prometheus-port", str(metrics), "--log-level", "critical"]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: pin(SERVER_CORE),  # noqa: PLW1509 - this process has one thread
    ) as process:
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(150):
        try:
            if len(first_byte_times(port, 1)) == 1:
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("vllm-router did not start")


def first_byte_times(port: int, count: int) -> list[float]:
    """Seconds from sending a request to the first bytes of its stream, one at a time."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = (head + f"Content-Length: {len(BODY)}\r\n\r\n{BODY}").encode()
    times = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            began = time.perf_counter()
            connection.sendall(request)
            data = connection.recv(65536)
            if not data:
                raise OSError("closed")
            times.append(time.perf_counter() - began)
            while not data.endswith(b"0\r\n\r\n"):
                more = connection.recv(65536)
                if not more:
                    raise OSError("closed")
                data += more
    return times


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


def load(url: str, concurrency: int, seconds: int) -> tuple[float, float, float]:
    """Streams a second, and p50 and p99 of a whole stream in ms, as wrk sees them."""
    script = f"""wrk.method="POST"
wrk.headers["Content-Type"]="application/json"
wrk.body='{BODY}'"""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds}s", "--latency", "-s"]
        done = subprocess.run(
            [*command, file.name, url + PATH],
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: pin(LOAD_CORE),
        )
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        print(done.stdout)
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", done.stdout)[0])
    p50, p99 = (_milliseconds(done.stdout, share) for share in ("50%", "99%"))
    return rate, p50, p99


def _milliseconds(text: str, share: str) -> float:
    number, unit = re.findall(rf"{share}\s+([\d.]+)(us|ms|s)", text)[0]
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def memory(pid: int) -> float:
    """Resident MB of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used: what a busy neighbour does not change."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def measure(name: str, url: str, pid: int, seconds: int, direct: float) -> dict[int, float]:
    """Print one server's rows; give its streams per processor second by concurrency."""
    port = int(url.rpartition(":")[2])
    first_byte_times(port, 200)
    before = memory(pid)
    times = first_byte_times(port, 1000)
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


def compare(servers: Mapping[str, tuple[str, int]], rounds: int, seconds: int) -> None:
    """Serve the same load in turns; print medians of all, and of ratios to the first."""
    first_token: dict[str, list[float]] = {name: [] for name in servers}
    rates: dict[tuple[str, int], list[float]] = {}
    for turn in range(rounds + 1):
        names = list(servers)[:: 1 if turn % 2 else -1]
        for name in names:
            times = first_byte_times(int(servers[name][0].rpartition(":")[2]), 300)
            if turn:  # the first round warms up
                first_token[name].append(statistics.median(times) * 1e3)
        for concurrency in (1, 32, 128):
            for name in names:
                url, pid = servers[name]
                used = processor_seconds(pid)
                streams = load(url, concurrency, seconds)[0] * seconds
                rate = streams / (processor_seconds(pid) - used)
                if turn:
                    rates.setdefault((name, concurrency), []).append(rate)
    base = next(iter(servers))
    for name in servers:
        print(f"{name}: first token p50 {statistics.median(first_token[name]):.3f} ms")
        for concurrency in (1, 32, 128):
            mine, theirs = rates[name, concurrency], rates[base, concurrency]
            ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            print(
                f"  {concurrency:4d} at once: {statistics.median(mine):7.0f} streams per processor "
                f"second, {ratio:.2f} of {base}"
            )


def compare_with(other: Path, router_binary: str, rounds: int, seconds: int) -> None:
    """This front door, that of another checkout, and vllm-router if there is one."""
    with ExitStack() as stack:
        folder = str(write_tokenizer(stack.enter_context(tempfile.TemporaryDirectory())))
        servers = {
            "the other": stack.enter_context(child("--serve", folder, checkout=other)),
            "this": stack.enter_context(child("--serve", folder)),
        }
        if router_binary:
            backend, _ = stack.enter_context(child("--mock"))
            servers["vllm-router"] = stack.enter_context(router(router_binary, backend))
        compare(servers, rounds, seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--router", default="", help="path of vllm-router, to compare with")
    parser.add_argument("--other", type=Path, help="another checkout, to compare with in turns")
    parser.add_argument("--rounds", type=int, default=5, help="of --other")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("--mock", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve_front_door(options.serve))
    if options.mock:
        uvloop.run(serve_mock())
    pin(LOAD_CORE)
    if options.other:
        compare_with(options.other, options.router, options.rounds, options.seconds)
        return
    direct = statistics.median(uvloop.run(direct_times(1000))) * 1e3
    print(f"engine alone: first token p50 {direct:.3f} ms")
    with (
        tempfile.TemporaryDirectory() as folder,
        child("--serve", str(write_tokenizer(folder))) as (url, pid),
    ):
        ours = measure("front door", url, pid, options.seconds, direct)
    with child("--mock") as (backend, mock_pid):
        measure("mock backend, direct", backend, mock_pid, options.seconds, 0.0)
        if not options.router:
            return
        with router(options.router, backend) as (url, pid):
            theirs = measure("vllm-router", url, pid, options.seconds, 0.0)
    ratios = ", ".join(f"{c}: {ours[c] / theirs[c]:.2f}" for c in CONCURRENCY)
    print(f"\nfront door / vllm-router, streams per processor second: {ratios}")


if __name__ == "__main__":
    main()
