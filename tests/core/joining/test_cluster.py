"""A cluster of machines that join: `shuntserve serve`, and machines that dial it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from shuntserve_core.joining.machine import Agents, Facts, JoiningMachine
from shuntserve_core.testing.chaos.client import ask
from shuntserve_core.testing.chaos.cluster import serving
from shuntserve_core.testing.chaos.requests import requests
from shuntserve_core.testing.models import write_tokenizer
from shuntserve_core.trust.authority import Identity
from shuntserve_core.trust.tickets import Ticket
from tests.core.runtime.clusters import write_config

pytestmark = pytest.mark.timeout(150)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = write_config(tmp_path, engine="tpot = 0.02\nttft = 0.02\nthroughput = 0")
    text = file.read_text()
    for before, after in (
        ('[[cluster]]\ninstance = "big"\ncount = 2\nmarket = "on-demand"\n', ""),
        ("count = 3", "count = 2"),
        ("spares = { small = 1 }", ""),
    ):
        assert before in text
        text = text.replace(before, after)
    launcher = f'[launcher]\nname = "join"\ndevice = "cpu"\nlisten = "127.0.0.1:{free_port()}"\n'
    file.write_text(f"{text}{launcher}[frontdoor]\nport = 0\n")
    write_tokenizer(tmp_path / "model", vocab_size=512)
    return file


def ticket(config: Path, uses: int) -> Ticket:
    file = config.with_name("ticket")
    subprocess.run(
        [
            sys.executable, "-m", "shuntserve_core.cli", "ticket", config, "small",
            "--uses", str(uses), "--valid", "5m", "--out", file,
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return Ticket.read(file)


@contextlib.asynccontextmanager
async def machines(directories: Sequence[Path], shown: Ticket | None) -> AsyncIterator[None]:
    """Machines that stay; their agents are processes of their own."""
    stop = asyncio.Event()
    urls = shown.urls if shown else ()
    joined = [JoiningMachine(directory, urls, Facts()) for directory in directories]
    tasks = [asyncio.create_task(machine.run(stop, shown)) for machine in joined]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)


def agents(directory: Path) -> Agents:
    return Agents(directory / "nodes", Identity.at(directory / "identity"))


async def gone(folders: Sequence[Path]) -> None:
    """Agents that were told to end do so within seconds."""
    async with asyncio.timeout(20):
        while any(agents(folder).running() for folder in folders):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_machines_serve_and_outlive_the_control_plane(config: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "m1", tmp_path / "m2"]
    asked = requests("tiny", "greedy", 24)[0]
    log, state = tmp_path / "serve.log", tmp_path / "state"
    async with machines(folders, ticket(config, uses=2)), serving(config, state, log) as first:
        before = await first.status()
        assert (await ask(first.session, first.url, asked)).complete
        ran = [agents(folder).running() for folder in folders]
        assert sorted(node for nodes in ran for node in nodes) == ["small#0", "small#1"]
        first.process.send_signal(signal.SIGKILL)
        await first.process.wait()
        async with serving(config, state, log) as second:
            after = await second.status()
            engines = [{run["engine_id"] for run in s["pipelines"]} for s in (before, after)]
            assert engines[0] == engines[1]
            assert [agents(folder).running() for folder in folders] == ran
            assert (await ask(second.session, second.url, asked)).complete
            second.process.send_signal(signal.SIGTERM)
            await second.process.wait()
            await gone(folders)


async def test_an_agent_outlives_the_process_that_joined(config: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "m1", tmp_path / "m2"]
    log, state = tmp_path / "serve.log", tmp_path / "state"
    asked = requests("tiny", "greedy", 24)[0]
    shown = ticket(config, uses=2)
    async with contextlib.AsyncExitStack() as stack:
        joined = await stack.enter_async_context(contextlib.AsyncExitStack())
        await joined.enter_async_context(machines(folders, shown))
        served = await stack.enter_async_context(serving(config, state, log))
        ran = [agents(folder).running() for folder in folders]
        await joined.aclose()
        assert (await ask(served.session, served.url, asked)).complete
        assert [agents(folder).running() for folder in folders] == ran
        async with machines(folders, None):
            assert (await ask(served.session, served.url, asked)).complete
            served.process.send_signal(signal.SIGTERM)
            await served.process.wait()
            await gone(folders)


async def test_a_node_that_no_machine_is_there_for_is_named(config: Path, tmp_path: Path) -> None:
    text = config.read_text()
    config.write_text(text.replace('device = "cpu"\n', 'device = "cpu"\njoin_seconds = 1\n'))
    log = tmp_path / "serve.log"
    with contextlib.suppress(RuntimeError):
        async with serving(config, tmp_path / "state", log) as served:
            status = await served.status()
            assert not any(p["state"] == "serving" for p in status["pipelines"])
    assert "no machine of type small waits to be small#0" in log.read_text()
    assert "shuntserve ticket CONFIG small" in log.read_text()
