from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.launcher import Launcher, NodeSpec
from shuntserve_core.joining.machine import Facts, JoiningMachine
from shuntserve_core.testing.launchers import LauncherContract
from shuntserve_plugins.launchers.join import JoinLauncher


class TestJoinLauncher(LauncherContract):
    """With two machines in this process, which dial the first launcher of a test."""

    @pytest.fixture(autouse=True)
    async def hall(self) -> AsyncIterator[None]:
        self.stop = asyncio.Event()
        self.machines: list[asyncio.Task[None]] = []
        self.launchers: list[JoinLauncher] = []
        yield
        self.stop.set()
        await asyncio.gather(*self.machines)
        for launcher in self.launchers:
            await launcher.close()

    def make_launcher(self) -> JoinLauncher:
        return JoinLauncher(listen="127.0.0.1:0", device="cpu")

    async def opened(self, state_dir: Path) -> Launcher:
        launcher = self.make_launcher()
        await launcher.open(state_dir)
        if not self.launchers:
            for node in self.nodes():
                ticket = launcher.make_ticket(state_dir, node.instance, 60, 1)
                url = f"https://127.0.0.1:{launcher.address[1]}"
                machine = JoiningMachine(state_dir / f"m-{node.instance}", [url], Facts())
                self.machines.append(asyncio.create_task(machine.run(self.stop, ticket)))
        self.launchers.append(launcher)
        return launcher

    async def test_what_waits_is_told(self, state_dir: Path) -> None:
        """A vacancy ends with a launch, and comes back with the node's end."""
        launcher = await self.opened(state_dir)
        assert isinstance(launcher, JoinLauncher)
        first, second = self.nodes()
        await launcher.launch(first)
        await launcher.launch(second)
        assert launcher.vacancies() == {}
        await launcher.terminate(first.name)
        assert launcher.vacancies() == {first.instance: 1}
        await launcher.terminate(second.name)

    async def test_one_machine_is_one_node(self, state_dir: Path) -> None:
        """A second node of the type waits for a second machine."""
        launcher = await self.opened(state_dir)
        assert isinstance(launcher, JoinLauncher)
        first = self.nodes()[0]
        await launcher.launch(first)
        launcher.join_seconds = 0.2
        with pytest.raises(UserError, match="no machine of type one waits to be one#1") as caught:
            await launcher.launch(NodeSpec("one#1", "one", 1))
        assert "shuntserve ticket CONFIG one" in str(caught.value)
        await launcher.terminate(first.name)


@pytest.mark.parametrize("text", ["7443", ":7443", "host:", "host:port", "host:70000"])
async def test_an_address_is_host_and_port(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"launcher\.listen: .* is no address; write HOST:PORT"):
        await JoinLauncher(listen=text).open(tmp_path)
