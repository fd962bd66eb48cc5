"""Whoever waits for an agent must not take its own pauses for the agent's silence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp
import pytest

from shuntserve_core.interfaces.launcher import AgentAddress
from shuntserve_core.node.client import SILENCE_SECONDS, AgentClient, AgentLost
from shuntserve_core.patience import within
from tests.core.runtime.virtual_time import VirtualLoop, run_virtually

TICK = 0.2
Pause = Callable[[float], None]


class Agent:
    """Says something every so often, and answers calls at once or never; stands in for a session.

    As with libuv, timers that are due after a pause come before what is read from sockets.
    """

    def __init__(self) -> None:
        self.speaks = True
        self._said: asyncio.Queue[aiohttp.WSMessage] = asyncio.Queue()
        self._tick()

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        if self.speaks:
            message = aiohttp.WSMessage(aiohttp.WSMsgType.TEXT, json.dumps({}), None)
            loop.call_soon(loop.call_soon, self._said.put_nowait, message)
        loop.call_later(TICK, self._tick)

    @asynccontextmanager
    async def ws_connect(self, *_: Any, **__: Any) -> AsyncIterator[Agent]:
        yield self

    async def receive(self) -> aiohttp.WSMessage:
        return await self._said.get()

    @asynccontextmanager
    async def request(self, *_: Any, **__: Any) -> AsyncIterator[Agent]:
        if not self.speaks:
            await asyncio.Event().wait()
        await self._said.get()
        yield self

    status = 200

    async def json(self) -> dict[str, list[str]]:
        return {"store_sockets": []}


def pause(seconds: float) -> None:
    """What a loop sees whose process was stopped, or busy, for so long."""
    cast(VirtualLoop, asyncio.get_running_loop()).now += seconds


def client_of(agent: Agent) -> AgentClient:
    address = AgentAddress("node", "http://agent", "token", "127.0.0.1")
    return AgentClient(address, cast(aiohttp.ClientSession, agent))


@pytest.mark.parametrize(
    ("pauses", "seconds"), [(1, 60.0), (1, 3600.0), (20, SILENCE_SECONDS / 5), (20, 30.0)]
)
def test_an_agent_is_not_lost_while_we_pause(
    monkeypatch: pytest.MonkeyPatch, pauses: int, seconds: float
) -> None:
    async def watch() -> list[str]:
        lost: list[str] = []
        client = client_of(Agent())
        client.watch(lambda _: None, lost.append)
        await asyncio.sleep(3.1)  # between two words
        for _ in range(pauses):
            pause(seconds)
            await asyncio.sleep(0.0)
        await asyncio.sleep(20.0)
        assert client._watcher is not None
        assert not client._watcher.done()
        await client.close()
        return lost

    assert run_virtually(watch(), monkeypatch, []) == []


@pytest.mark.parametrize("paused", [0.0, 60.0])
def test_an_agent_that_says_nothing_is_lost(monkeypatch: pytest.MonkeyPatch, paused: float) -> None:
    async def watch() -> tuple[str, float]:
        loop, agent = asyncio.get_running_loop(), Agent()
        lost = loop.create_future()
        client = client_of(agent)
        client.watch(lambda _: None, lost.set_result)
        await asyncio.sleep(3.1)  # between two words
        agent.speaks = False
        pause(paused)
        began = loop.time()
        return await lost, loop.time() - began

    reason, took = run_virtually(watch(), monkeypatch, [])
    assert reason == "silent for 5 s"
    assert 4.0 * SILENCE_SECONDS / 5 - TICK <= took <= SILENCE_SECONDS + 1.0


def test_an_answer_that_came_while_we_paused_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def call() -> dict[str, Any]:
        agent = Agent()
        await agent.receive()
        asyncio.get_running_loop().call_later(TICK / 2, pause, 500.0)
        return await client_of(agent).describe()

    assert run_virtually(call(), monkeypatch, []) == {"store_sockets": []}


def test_a_call_that_is_not_answered_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def call() -> float:
        agent = Agent()
        agent.speaks = False
        with pytest.raises(AgentLost, match="node: TimeoutError"):
            await client_of(agent).describe()
        return asyncio.get_running_loop().time()

    assert run_virtually(call(), monkeypatch, []) == pytest.approx(30.0)


def test_what_is_given_up_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait() -> list[str]:
        told: list[str] = []

        async def work() -> None:
            try:
                await asyncio.sleep(1e6)
            finally:
                told.append("ended")

        with pytest.raises(TimeoutError):
            await within(5.0, work())
        outer = asyncio.create_task(within(5.0, work()))
        await asyncio.sleep(1.0)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        return told

    assert run_virtually(wait(), monkeypatch, []) == ["ended", "ended"]
