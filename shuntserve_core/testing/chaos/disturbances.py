"""What happens to a cluster under test, and when."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

import psutil
from attrs import frozen

from shuntserve_core.testing.chaos.cluster import PROCESSES, Served

KINDS = ("notice", "loss", "engine", "store", "agent", "template")
"""What is done unless told otherwise: nodes that go, and processes that get SIGKILL."""
HANG = "hang"
"""An engine's process gets SIGSTOP.  That is detected after seconds only, so every stream waits."""


@frozen
class Disturbance:
    """Something that was done."""

    at: float
    """Seconds since the epoch."""
    kind: str
    target: str


class Chaos:
    """Disturbs a cluster every few seconds, and gives back what it took."""

    def __init__(
        self,
        served: Served,
        *,
        seed: int,
        every: tuple[float, float],
        notice: float,
        away: float,
        kinds: tuple[str, ...] = KINDS,
    ) -> None:
        self.done: list[Disturbance] = []
        self._served = served
        self._random = random.Random(seed)
        self._every = every
        self._notice = notice
        self._away = away
        self._kinds = kinds
        self._returns: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Disturb until cancelled; then everything that was taken comes back."""
        try:
            while True:
                await asyncio.sleep(self._random.uniform(*self._every))
                await self._disturb(self._random.choice(self._kinds))
        finally:
            for task in self._returns:
                task.cancel()

    async def restore_all(self, seconds: float = 240.0) -> bool:
        """Bring every node back; whether pipelines served again in time."""
        try:
            async with asyncio.timeout(seconds):
                while not await self._is_whole():  # noqa: ASYNC110
                    await asyncio.sleep(0.5)
                await settled(self._served, seconds)
        except TimeoutError:
            return False
        return True

    async def _is_whole(self) -> bool:
        """Whether every node is up; tells those that are not to come back.

        A disturbance that was cancelled half-way may still take effect, so this is asked again.
        """
        nodes = (await self._served.status())["nodes"]
        for node in nodes:
            if node["state"] in ("noticed", "lost"):
                await self._served.tell(node["name"], "restored")
        return all(node["state"] == "up" for node in nodes)

    async def _disturb(self, kind: str) -> None:
        if kind in ("notice", "loss"):
            await self._take(kind)
            return
        found = self._served.named(PROCESSES["engine" if kind == HANG else kind])
        if not found:
            return
        victim = self._random.choice(found)
        target = f"{kind} {victim.pid}"
        if kind == "agent":
            command = _command(victim)
            target = command[command.index("--name") + 1]
            self._bring_back(target, self._away)
        with contextlib.suppress(psutil.Error):
            victim.suspend() if kind == HANG else victim.kill()
            self.done.append(Disturbance(time.time(), kind, target))

    async def _take(self, kind: str) -> None:
        nodes = [n["name"] for n in (await self._served.status())["nodes"] if n["state"] == "up"]
        if len(nodes) < 2:
            return
        node = self._random.choice(nodes)
        if kind == "notice":
            await self._served.tell(node, "notice", self._notice)
            self._bring_back(node, self._notice + self._away)
        else:
            await self._served.tell(node, "lost")
            self._bring_back(node, self._away)
        self.done.append(Disturbance(time.time(), kind, node))

    def _bring_back(self, node: str, after: float) -> None:
        async def later() -> None:
            await asyncio.sleep(after)
            await self._served.tell(node, "restored")

        task = asyncio.create_task(later())
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)


def _command(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return command


async def settled(served: Served, seconds: float = 120.0) -> None:
    """Wait until all nodes are up and no pipeline is on its way.  Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        quiet = 0
        while quiet < 6:
            status = await served.status()
            nodes = all(node["state"] == "up" for node in status["nodes"])
            runs = [run["state"] for run in status["pipelines"]]
            calm = nodes and runs and all(state == "serving" for state in runs)
            quiet = quiet + 1 if calm else 0
            await asyncio.sleep(0.5)
