"""What `frontdoor.py` sends to a server, and what it reads of it: streams, rates, memory."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

TOKENS = 16
PATH = "/v1/chat/completions"
BODY = json.dumps(
    {
        "model": "m",
        "messages": [{"role": "user", "content": "The quick brown fox jumps over the lazy dog."}],
        "max_tokens": TOKENS,
        "stream": True,
    }
)
CORES = sorted(os.sched_getaffinity(0))  # before this process is pinned, and its children with it
SERVER_CORE, LOAD_CORE = 0, 1


def pin(core: int) -> None:
    """Keep this process on one core, where the machine has two."""
    os.sched_setaffinity(0, {CORES[core % len(CORES)]})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a server's port serves streams; false if it ends or takes two minutes."""
    for _ in range(600):
        try:
            if next(streams(port)):
                return True
        except OSError:
            time.sleep(0.2)
        if process.poll() is not None:
            return False
    return False


def streams(port: int) -> Iterator[tuple[float, int]]:
    """One stream after the other: seconds to its first text, and its number of events."""
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = (head + f"Content-Length: {len(BODY)}\r\n\r\n{BODY}").encode()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            began, first, data = time.perf_counter(), 0.0, b""
            connection.sendall(request)
            while not data.endswith(b"0\r\n\r\n"):
                more = connection.recv(65536)
                if not more:
                    raise OSError("closed")
                data += more
                if not data.startswith(b"HTTP/1.1 200 "[: len(data)]):
                    raise OSError(data.decode(errors="replace"))
                # Heads and the event with the role may leave before there is a token.
                if not first and re.search(rb'"content": ?"[^"]', data):
                    first = time.perf_counter() - began
            if not first:
                raise OSError(data.decode(errors="replace"))
            yield first, data.count(b"data: ")


def first_token_times(port: int, count: int) -> list[float]:
    """Seconds to the first text of so many streams, one at a time."""
    return [first for first, _ in islice(streams(port), count)]


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
