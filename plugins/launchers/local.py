"""Nodes as subprocesses of one machine: for a laptop, for tests, and for one big server.

Agents are detached, so that a control plane that is killed finds them again; each leaves a file
with its address in `<state_dir>/nodes/`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from attrs import asdict, define, field
from attrs.validators import in_

from shuntserve_core.errors import UserError
from shuntserve_core.files import file_name, private_dir, write_private
from shuntserve_core.interfaces.launcher import AgentAddress, NodeSpec
from shuntserve_core.node.devices import cuda_trouble
from shuntserve_core.node.starting import AgentOptions, AgentProcesses, AgentRecord
from shuntserve_core.surfaces import AGENTS, ENGINES, RANKS, STORES


@define
class LocalLauncher:
    """Starts agents on loopback."""

    device: str = field(default="cpu", validator=in_(("cpu", "cuda")))
    """`cpu`, or `cuda`: GPU k of every node is GPU k of this machine, which nodes share."""
    orphan_seconds: float = 600.0
    """Seconds after which an agent without a control plane ends."""

    _state_dir: Path = field(init=False, factory=Path)
    _processes: AgentProcesses = field(init=False, factory=AgentProcesses)

    async def open(self, state_dir: Path) -> None:
        """Keep addresses, secrets and logs of nodes in this directory."""
        self._state_dir = state_dir
        self._refuse(gpus=1)

    def trouble(self, gpus: int) -> str:
        """What this machine lacks, where nodes are to have its GPUs."""
        return cuda_trouble(gpus) if self.device == "cuda" else ""

    def _refuse(self, gpus: int) -> None:
        if trouble := self.trouble(gpus):
            raise UserError(trouble, where="launcher.device", remedy='set it to "cpu"')

    async def launch(self, node: NodeSpec) -> AgentAddress:
        """Start an agent and wait for its URL."""
        self._refuse(node.gpus)
        await self.terminate(node.name)  # whatever an earlier launch has left
        directory = private_dir(self._directory(node.name))
        write_private(directory / "name", node.name)
        token = secrets.token_urlsafe(32)

        def remember(agent: AgentRecord) -> None:
            text = json.dumps({"token": token, **asdict(agent)})
            write_private(directory / "agent.json", text)

        options = AgentOptions(
            node.name,
            node.gpus,
            token,
            directory,
            self._run_dir(node.name),
            device=self.device,
            orphan_seconds=self.orphan_seconds,
        )
        agent = await self._processes.start(options, remember)
        return AgentAddress(node.name, agent.url, token, "127.0.0.1")

    async def adopt(self) -> list[AgentAddress]:
        """Agents of an earlier control plane whose processes still live."""
        found = []
        for path in sorted(self._state_dir.glob("nodes/*/agent.json")):
            with contextlib.suppress(ValueError, KeyError, OSError):
                token, agent = _read(path)
                if agent.lives:
                    name = (path.parent / "name").read_text()
                    found.append(AgentAddress(name, agent.url, token, "127.0.0.1"))
        return found

    def security_posture(self) -> list[str]:
        """Agents listen on loopback; engines and stores on what agents give them."""
        nodes = self._state_dir / "nodes"
        return [
            AGENTS.line(asks=f"a secret each in {nodes}"),
            *(one.line() for one in (STORES, ENGINES, RANKS)),
        ]

    async def terminate(self, node: str) -> None:
        """Kill the agent; the kernel ends everything that it started."""
        directory = self._directory(node)
        with contextlib.suppress(ValueError, KeyError, OSError):
            await self._processes.end(_read(directory / "agent.json")[1])
        (directory / "agent.json").unlink(missing_ok=True)
        shutil.rmtree(self._run_dir(node), ignore_errors=True)

    def _directory(self, node: str) -> Path:
        """What it keeps of a node; nothing is written here, for nodes end on full disks too."""
        return self._state_dir / "nodes" / file_name(node)

    def _run_dir(self, node: str) -> Path:
        """Sockets; short, because a socket's path has at most 107 bytes."""
        digest = hashlib.sha256(f"{self._state_dir.resolve()}/{node}".encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"shuntserve-{os.geteuid()}" / digest


def _read(path: Path) -> tuple[str, AgentRecord]:
    """An agent's secret, and where it is."""
    document = json.loads(path.read_text())
    token = document.pop("token")
    return token, AgentRecord(document["url"], int(document["pid"]), document["process"])
