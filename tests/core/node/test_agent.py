from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.engine import WorkerCommand
from shuntserve_core.node.agent import Agent
from shuntserve_core.node.watching import SpotWatch

SLEEPS = 'import sys, time; print(\'{"event": "ready"}\', flush=True); time.sleep(60)'
FAMILY = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"


def worker(code: str) -> WorkerCommand:
    return WorkerCommand("n#0", (sys.executable, "-c", code), ranks=(0,))


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Agent]:
    agent = Agent("n#0", 1, directory)
    try:
        yield agent
    finally:
        await agent.close()


async def hears(queue: asyncio.Queue[dict[str, Any]], kind: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while (event := await queue.get())["event"] != kind:
            pass
    return event


async def test_workers_report_and_end_with_their_children(tmp_path: Path) -> None:
    async with running(tmp_path) as agent:
        events = agent.subscribe()
        await agent.start_engine("e", [worker(SLEEPS), worker(FAMILY)], {"plan": 1})
        assert (await hears(events, "ready"))["worker"] == 0
        (engine,) = (await agent.describe())["engines"]
        assert engine["launch"] == {"plan": 1}
        while not (children := psutil.Process(engine["pids"][1]).children()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        everyone = [psutil.Process(pid) for pid in engine["pids"]] + children
        await agent.stop_engine("e", 0.0)
        _, alive = psutil.wait_procs(everyone, timeout=10)
        assert not alive


async def test_a_stop_that_overtakes_its_start_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as agent:
        before = set(psutil.Process().children(recursive=True))
        await agent.stop_engine("late", 0.0)
        with pytest.raises(UserError):
            await agent.start_engine("late", [worker(SLEEPS)], {})
        starting = asyncio.create_task(agent.start_engine("e", [worker(SLEEPS)] * 3, {}))
        await asyncio.sleep(0)
        await agent.stop_engine("e", 0.0)
        await starting
        left = set(psutil.Process().children(recursive=True)) - before
        assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]


async def test_a_killed_worker_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as agent:
        events = agent.subscribe()
        await agent.start_engine("e", [worker(SLEEPS)], {})
        await hears(events, "ready")
        psutil.Process((await agent.describe())["engines"][0]["pids"][0]).kill()
        told = await hears(events, "exit")
        assert (told["engine_id"], told["code"]) == ("e", -9)
        assert not (await agent.describe())["engines"][0]["alive"]


async def test_a_notice_that_stands_is_told_to_whoever_comes_later(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("at,node,kind,notice\n0,n#0,notice,60\n0.5,n#0,withdrawn,\n")
    async with running(tmp_path) as agent:
        first = agent.subscribe()
        agent.watch_spot([SpotWatch("trace", {"file": str(trace)})])
        heard = await hears(first, "spot")
        again = await hears(agent.subscribe(), "spot")
        assert again == heard
        assert heard["spot"]["kind"] == "notice"
        assert (await hears(first, "spot"))["spot"]["kind"] == "withdrawn"
        assert agent.subscribe().empty()
