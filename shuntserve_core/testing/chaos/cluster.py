"""A running `shuntserve serve`, and what can be done to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from attrs import astuple, define, frozen

from shuntserve_core.runtime.control import CONTROL_FILE

START_SECONDS = 180.0
END_SECONDS = 60.0


@define
class Served:
    """A cluster of its own process, with its state in `state_dir`."""

    process: asyncio.subprocess.Process
    url: str
    state_dir: Path
    session: aiohttp.ClientSession
    said: tuple[str, ...] = ()
    """What `serve` has printed until it served, line by line."""

    async def status(self) -> dict[str, Any]:
        """As `shuntserve status --json`."""
        status: dict[str, Any] = await self._control("GET", "/v1/status")
        return status

    async def tell(self, node: str, kind: str, notice: float | None = None) -> None:
        """As `shuntserve interrupt` and `restore`."""
        body = {"node": node, "kind": kind, "notice": notice}
        await self._control("POST", "/v1/events", body)

    async def _control(self, method: str, path: str, body: Any = None) -> Any:
        control = json.loads((self.state_dir / CONTROL_FILE).read_text())
        headers = {"Authorization": f"Bearer {control['token']}"}
        url = control["url"] + path
        async with self.session.request(method, url, json=body, headers=headers) as response:
            response.raise_for_status()
            return await response.json()

    async def workers(self, engine_id: str) -> dict[int, int]:
        """Process ids of an engine's workers, by their first rank."""
        found: dict[int, int] = {}
        for file in self.state_dir.glob("nodes/*/agent.json"):
            agent = json.loads(file.read_text())
            headers = {"Authorization": f"Bearer {agent['token']}"}
            async with self.session.get(f"{agent['url']}/v1/node", headers=headers) as response:
                engines = (await response.json())["engines"]
            for engine in engines:
                if engine["engine_id"] == engine_id:
                    for ranks, pid in zip(engine["ranks"], engine["pids"], strict=True):
                        found[ranks[0]] = pid
        return found

    def agent_pid(self, node: str) -> int:
        """Process id of a node's agent."""
        for file in self.state_dir.glob("nodes/*/agent.json"):
            if (file.parent / "name").read_text() == node:
                return int(json.loads(file.read_text())["pid"])
        raise LookupError(node)

    def processes(self) -> list[psutil.Process]:
        """The control plane and all that belongs to its nodes."""
        found = [psutil.Process(self.process.pid)] if self.process.returncode is None else []
        for file in self.state_dir.glob("nodes/*/agent.json"):
            with contextlib.suppress(psutil.Error, ValueError, OSError):
                agent = psutil.Process(int(json.loads(file.read_text())["pid"]))
                found += [agent, *agent.children(recursive=True)]
        return found

    def named(self, part: str) -> list[psutil.Process]:
        """Processes of nodes whose command line holds a word."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if any(part in word for word in process.cmdline()):
                    found.append(process)
        return found


@asynccontextmanager
async def serving(config: Path, state_dir: Path, log: Path) -> AsyncIterator[Served]:
    """Run `shuntserve serve` until the end of the block.  Raises RuntimeError."""
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "shuntserve_core.cli", "serve", "-v", str(config)),
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
        )
    try:
        async with asyncio.timeout(START_SECONDS):
            said = await _said(process, log)
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            url = next(word for word in said[-1].split() if word.startswith("http"))
            yield Served(process, url.rstrip("."), state_dir, session, said)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()


async def _said(process: asyncio.subprocess.Process, log: Path) -> tuple[str, ...]:
    """What it prints, until the line that says where it serves."""
    assert process.stdout is not None
    said: list[str] = []
    async for line in process.stdout:
        said.append(line.decode().rstrip("\n"))
        if said[-1].split()[:1] == ["Serving"]:
            return tuple(said)
    raise RuntimeError(f"shuntserve serve did not start, see {log}")


@frozen
class Resources:
    """What the processes of one kind take."""

    processes: int = 0
    threads: int = 0
    open_files: int = 0
    memory_bytes: int = 0
    """Proportional set size: shared pages count once."""

    def __add__(self, other: Resources) -> Resources:
        return Resources(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


PROCESSES = {
    "engine": "worker",
    "store": ".tensorstore",
    "agent": "shuntserve_core.node",
    "template": "shuntserve_core.forking",
    "control plane": "shuntserve_core.cli",
}
"""Kinds of processes, by a word of their command line."""


def resources(processes: Iterable[psutil.Process]) -> dict[str, Resources]:
    """By kind of process; whatever is none of `PROCESSES` is "other"."""
    found: dict[str, Resources] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            with process.oneshot():
                line = " ".join(process.cmdline())
                kind = next((kind for kind, word in PROCESSES.items() if word in line), "other")
                taken = Resources(
                    1,
                    process.num_threads(),
                    process.num_fds(),
                    process.memory_full_info().pss,
                )
            found[kind] = found.get(kind, Resources()) + taken
    return found


def shared_segments() -> int:
    """Files in the system's shared memory."""
    directory = Path("/dev/shm")  # noqa: S108
    return sum(1 for _ in directory.iterdir()) if directory.is_dir() else 0
