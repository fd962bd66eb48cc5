"""Spot sources on a node: what the configuration says of them holds there too."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.engine import WorkerCommand
from shuntserve_core.interfaces.launcher import AgentAddress
from shuntserve_core.node.client import AgentClient
from shuntserve_core.node.server import make_app
from shuntserve_core.node.watching import SpotWatch
from shuntserve_core.registry import DISABLE_VARIABLE
from tests.core.node.test_agent import hears, running


def trace(folder: Path, *rows: str) -> dict[str, Any]:
    file = folder / "trace.csv"
    file.write_text("\n".join(["at,node,kind,notice", *rows]) + "\n")
    return {"file": str(file)}


async def test_a_notice_without_a_deadline_leaves_what_the_configuration_says(
    tmp_path: Path,
) -> None:
    options = trace(tmp_path, "0,n#0,notice,", "0.2,n#0,notice,")
    async with running(tmp_path) as agent:
        events = agent.subscribe()
        agent.watch_spot([SpotWatch("trace", options, default_notice=3000.0)])
        first = (await hears(events, "spot"))["spot"]["deadline"]
        assert 2000 < first - time.time() <= 3000
        again = (await hears(events, "spot"))["spot"]["deadline"]
        assert again == first
        [standing] = [agent.subscribe().get_nowait()]
        assert standing["spot"]["deadline"] == first


async def test_it_listens_to_what_is_listed_alone(tmp_path: Path) -> None:
    options = trace(tmp_path, "0,n#0,notice,60", "0.3,n#0,rebalance,")
    async with running(tmp_path) as agent:
        events = agent.subscribe()
        slow, fast = ({**options, "time_scale": scale} for scale in (1.0, 1000.0))
        agent.watch_spot([SpotWatch("trace", slow)])
        await hears(events, "spot")
        agent.watch_spot([SpotWatch("trace", slow)])  # as it was: it does not begin anew
        assert (await hears(events, "spot"))["spot"]["kind"] == "rebalance"
        agent.watch_spot([SpotWatch("trace", fast)])
        assert (await hears(events, "spot"))["spot"]["kind"] == "notice"
        agent.watch_spot([])
        assert agent.subscribe().empty()


async def test_a_source_that_fails_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as agent:
        events = agent.subscribe()
        agent.watch_spot([SpotWatch("trace", {"file": str(tmp_path / "none.csv")})])
        failed = await hears(events, "spot-failed")
        assert failed["source"] == "trace"
        assert "none.csv" in failed["reason"]


@pytest.mark.parametrize(
    ("watch", "says"),
    [
        (SpotWatch("trase"), "unknown spot-source 'trase'; did you mean 'trace'"),
        (SpotWatch("trace", {"fil": "x"}), "spot trace.fil: unknown key"),
        (SpotWatch("trace", {"file": 3}), "spot trace.file: 3 is not a text"),
    ],
)
async def test_what_cannot_be_made_changes_nothing(
    watch: SpotWatch, says: str, tmp_path: Path
) -> None:
    options = trace(tmp_path, "0,n#0,notice,60", "0.3,n#0,rebalance,")
    async with running(tmp_path) as agent:
        events = agent.subscribe()
        agent.watch_spot([SpotWatch("trace", options)])
        with pytest.raises(UserError) as caught:
            agent.watch_spot([watch])
        assert says in str(caught.value)
        await hears(events, "spot")
        assert (await hears(events, "spot"))["spot"]["kind"] == "rebalance"


async def test_disabled_plugins_are_left_out_here_and_in_what_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, "by-hand")
    code = (
        "import json, os; print(json.dumps({'event': 'ready',"
        f" 'disabled': os.environ['{DISABLE_VARIABLE}']}}), flush=True)"
    )
    async with running(tmp_path) as agent:
        events = agent.subscribe()
        agent.disable_plugins(["bundled-clouds", "other"])
        with pytest.raises(UserError, match="unknown spot-source 'trace'"):
            agent.watch_spot([SpotWatch("trace")])
        command = WorkerCommand("n#0", (sys.executable, "-c", code), ranks=(0,))
        await agent.start_engine("e", [command], {})
        assert (await hears(events, "ready"))["disabled"] == "by-hand,bundled-clouds,other"
        agent.disable_plugins([])
        assert os.environ[DISABLE_VARIABLE] == "by-hand"
        agent.watch_spot([])


async def test_over_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLE_VARIABLE, "")
    options = trace(tmp_path, "0,n#0,notice,")
    async with running(tmp_path) as agent:
        runner = web.AppRunner(make_app(agent, "secret"))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with aiohttp.ClientSession() as session:
                client = AgentClient(AgentAddress("n#0", url, "secret", "127.0.0.1"), session)
                events = agent.subscribe()
                await client.watch_spot([SpotWatch("trace", options, 3000.0)])
                deadline = (await hears(events, "spot"))["spot"]["deadline"]
                assert deadline - time.time() > 2000
                await client.disable_plugins(["bundled-clouds"])
                assert os.environ[DISABLE_VARIABLE] == "bundled-clouds"
                with pytest.raises(UserError, match="unknown spot-source"):
                    await client.watch_spot([SpotWatch("trace", options, 60.0)])
        finally:
            await runner.cleanup()
            await asyncio.sleep(0)
