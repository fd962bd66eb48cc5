"""Agents in the foreground: their logs are on this terminal, and they end with `serve`.

The bundled launcher `local` leaves agents running for the next control plane; who tries things out
may not want that.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from pathlib import Path

from attrs import define, field

from shuntserve_core.errors import UserError
from shuntserve_core.files import file_name, private_dir, write_private
from shuntserve_core.interfaces.launcher import AgentAddress, NodeSpec
from shuntserve_core.surfaces import AGENTS, ENGINES, RANKS, STORES


@define
class Attended:
    """The fields are what users may write in the table `[launcher]`."""

    start_seconds: float = 30.0
    """How long an agent may take to answer."""

    _folder: Path = field(init=False, factory=Path)
    _agents: dict[str, asyncio.subprocess.Process] = field(init=False, factory=dict)

    async def open(self, state_dir: Path) -> None:
        """Secrets and sockets of nodes are kept below this directory."""
        self._folder = state_dir / "attended"

    async def launch(self, node: NodeSpec) -> AgentAddress:
        """Start an agent, and read its URL from the first line that it prints."""
        await self.terminate(node.name)
        folder = private_dir(private_dir(self._folder) / file_name(node.name))
        token = secrets.token_urlsafe(32)
        write_private(folder / "token", token)
        words = ["--name", node.name, "--gpus", str(node.gpus), "--run-dir", str(folder)]
        words += ["--token-file", str(folder / "token"), "--orphan-seconds", "10"]
        agent = self._agents[node.name] = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "shuntserve_core.node",
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert agent.stdout is not None
        try:
            line = await asyncio.wait_for(agent.stdout.readline(), self.start_seconds)
            url = str(json.loads(line)["url"])
        except (TimeoutError, ValueError, KeyError):
            await self.terminate(node.name)
            message = f"the agent of {node.name} did not start"
            raise UserError(message, where="launcher", remedy="see its words above") from None
        return AgentAddress(node.name, url, token, "127.0.0.1")

    async def adopt(self) -> list[AgentAddress]:
        """None: they ended with the control plane that started them."""
        return []

    def security_posture(self) -> list[str]:
        """All of it on loopback, in sockets and behind secrets of this user alone."""
        return [one.line() for one in (AGENTS, STORES, ENGINES, RANKS)]

    async def terminate(self, node: str) -> None:
        """Kill the agent; the kernel ends everything that it started."""
        agent = self._agents.pop(node, None)
        if agent is not None and agent.returncode is None:
            os.killpg(agent.pid, signal.SIGKILL)
            await agent.wait()
