"""The contract of launchers: subclass `LauncherContract`, and say how to make one.

class TestMine(LauncherContract):
    def make_launcher(self):
        return MyLauncher()

Tests are coroutines: run them with pytest-asyncio in its mode `auto`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.launcher import AgentAddress, Launcher, NodeSpec
from shuntserve_core.node.client import AgentClient, AgentLost


class LauncherContract:
    """What every launcher must do with real agents."""

    OUTLIVES = True
    """Whether agents go on without their control plane, to be adopted by the next."""

    def make_launcher(self) -> Launcher:
        """A launcher of agents on CPUs that this machine can reach."""
        raise NotImplementedError

    def nodes(self) -> tuple[NodeSpec, NodeSpec]:
        """Two nodes that it can launch."""
        return NodeSpec("one#0", "one", 1), NodeSpec("two#0", "two", 2)

    async def opened(self, state_dir: Path) -> Launcher:
        """One that is ready: the first of a control plane, or the next one's."""
        launcher = self.make_launcher()
        await launcher.open(state_dir)
        return launcher

    @pytest.fixture
    def state_dir(self, tmp_path: Path) -> Path:
        """Where it keeps what must outlive it; `open` finds it there."""
        return tmp_path

    @contextlib.asynccontextmanager
    async def _launched(self, state_dir: Path) -> AsyncIterator[tuple[Launcher, AgentAddress]]:
        launcher = await self.opened(state_dir)
        node = self.nodes()[0]
        try:
            yield launcher, await launcher.launch(node)
        finally:
            for one in self.nodes():
                await launcher.terminate(one.name)

    async def test_an_agent_answers_who_has_its_secret(self, state_dir: Path) -> None:
        """It is the node that was asked for, and has a secret of its own."""
        node = self.nodes()[0]
        async with self._launched(state_dir) as (_, address):
            assert address.node == node.name
            assert len(address.token) >= 20
            assert address.host
            async with aiohttp.ClientSession() as session:
                described = await AgentClient(address, session).describe()
                assert (described["name"], described["gpus"]) == (node.name, node.gpus)
                url = f"{address.url}/v1/node"
                async with session.get(url, **address.tls_options) as answer:
                    assert answer.status == 401

    async def test_nodes_are_apart(self, state_dir: Path) -> None:
        """Each has its agent and its secret, and one ends without the other."""
        first, second = self.nodes()
        async with self._launched(state_dir) as (launcher, address):
            other = await launcher.launch(second)
            assert other.url != address.url
            assert other.token != address.token
            await launcher.terminate(first.name)
            assert not await self._answers(address)
            assert await self._answers(other)

    async def test_an_agent_that_is_terminated_is_gone(self, state_dir: Path) -> None:
        """When `terminate` returns the next one may start; what is not there may be terminated."""
        async with self._launched(state_dir) as (launcher, address):
            await launcher.terminate(address.node)
            assert not await self._answers(address)
            await launcher.terminate(address.node)
            await launcher.terminate("never#7")
            assert address.node not in [one.node for one in await launcher.adopt()]

    async def test_launching_again_replaces(self, state_dir: Path) -> None:
        """Two agents of one name would fight over a machine's GPUs."""
        async with self._launched(state_dir) as (launcher, address):
            again = await launcher.launch(self.nodes()[0])
            assert again.token != address.token
            assert await self._answers(again)
            assert not await self._answers(address)

    async def test_the_next_control_plane_finds_what_goes_on(self, state_dir: Path) -> None:
        """By the state directory alone; agents that end with the control plane are not found."""
        async with self._launched(state_dir) as (_, address):
            found = await (await self.opened(state_dir)).adopt()
            assert found == ([address] if self.OUTLIVES else [])

    async def test_it_says_what_nodes_open(self, state_dir: Path) -> None:
        """One line each, for whoever must decide on firewalls."""
        lines = (await self.opened(state_dir)).security_posture()
        assert lines
        assert all(line and "\n" not in line for line in lines)

    @staticmethod
    async def _answers(address: AgentAddress) -> bool:
        """Whether this very agent, with its secret, is still there."""
        async with aiohttp.ClientSession() as session:
            try:
                await AgentClient(address, session).describe()
            except (AgentLost, UserError):
                return False
        return True
