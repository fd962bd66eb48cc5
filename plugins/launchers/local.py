"""Nodes as subprocesses of one machine: for a laptop, for tests, and for one big server.

Agents are detached, so that a control plane that is killed finds them again; each leaves a file
with its address in `<state_dir>/nodes/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from attrs import define, field
from attrs.validators import in_

from shuntserve_core.errors import UserError
from shuntserve_core.files import file_name, open_log, private_dir, write_private
from shuntserve_core.interfaces.launcher import AgentAddress, NodeSpec
from shuntserve_core.node.devices import cuda_trouble
from shuntserve_core.node.logs import quoted
from shuntserve_core.processes import identity_of, runs
from shuntserve_core.surfaces import AGENTS, ENGINES, RANKS, STORES

_START_SECONDS = 30.0
_END_SECONDS = 10.0


@define
class LocalLauncher:
    """Starts agents on loopback."""

    device: str = field(default="cpu", validator=in_(("cpu", "cuda")))
    """`cpu`, or `cuda`: GPU k of every node is GPU k of this machine, which nodes share."""
    orphan_seconds: float = 600.0
    """Seconds after which an agent without a control plane ends."""

    _state_dir: Path = field(init=False, factory=Path)

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
        token_file = directory / "token"
        token = secrets.token_urlsafe(32)
        write_private(token_file, token)
        argv = [sys.executable, "-m", "shuntserve_core.node", "--name", node.name]
        run_dir = self._run_dir(node.name)
        private_dir(run_dir.parent)
        argv += ["--gpus", str(node.gpus), "--run-dir", str(private_dir(run_dir))]
        argv += ["--log-dir", str(directory), "--token-file", str(token_file)]
        argv += ["--device", self.device]
        argv += ["--orphan-seconds", str(self.orphan_seconds)]
        log = directory / "agent.log"
        with open_log(log) as errors:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert process.stdout is not None
        done = False
        try:
            line = await asyncio.wait_for(process.stdout.readline(), _START_SECONDS)
            url = str(json.loads(line)["url"])
            identity = identity_of(process.pid)
            address = {"url": url, "token": token, "pid": process.pid, "process": identity}
            write_private(directory / "agent.json", json.dumps(address))
            done = True
        except (TimeoutError, ValueError, KeyError):
            raise UserError(
                f"the agent of {node.name} did not start", remedy=f"see {quoted(log)}"
            ) from None
        finally:
            if not done:  # nor may it outlive a launch that is cancelled, or not remembered
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return AgentAddress(node.name, url, token, "127.0.0.1")

    async def adopt(self) -> list[AgentAddress]:
        """Agents of an earlier control plane whose processes still live."""
        found = []
        for path in sorted(self._state_dir.glob("nodes/*/agent.json")):
            with contextlib.suppress(ValueError, KeyError, OSError):
                address = json.loads(path.read_text())
                if runs(address["process"]):
                    name = (path.parent / "name").read_text()
                    found.append(AgentAddress(name, address["url"], address["token"], "127.0.0.1"))
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
            address = json.loads((directory / "agent.json").read_text())
            if runs(address["process"]):
                os.killpg(int(address["pid"]), signal.SIGKILL)
                await _wait_gone(address["process"])
        (directory / "agent.json").unlink(missing_ok=True)
        shutil.rmtree(self._run_dir(node), ignore_errors=True)

    def _directory(self, node: str) -> Path:
        """What it keeps of a node; nothing is written here, for nodes end on full disks too."""
        return self._state_dir / "nodes" / file_name(node)

    def _run_dir(self, node: str) -> Path:
        """Sockets; short, because a socket's path has at most 107 bytes."""
        digest = hashlib.sha256(f"{self._state_dir.resolve()}/{node}".encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"shuntserve-{os.geteuid()}" / digest


async def _wait_gone(process: str) -> None:
    for _ in range(int(_END_SECONDS / 0.01)):
        if not runs(process):
            return
        await asyncio.sleep(0.01)
