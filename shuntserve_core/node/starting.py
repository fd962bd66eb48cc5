"""Starting node agents on this machine, and ending them: what launchers of processes share.

An agent is a session of its own, and outlives whoever started it.  What is written down of it
(`AgentRecord`) is enough to find it again, and to end it with everything that it started.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from shuntserve_core.errors import UserError
from shuntserve_core.files import open_log, private_dir, write_private
from shuntserve_core.node.logs import quoted
from shuntserve_core.processes import identity_of, runs

START_SECONDS = 30.0
_END_SECONDS = 10.0
_POLL_SECONDS = 0.01


@frozen
class AgentOptions:
    """An agent that is to be started."""

    node: str
    gpus: int
    token: str
    directory: Path
    """Its logs and its secret."""
    run_dir: Path
    """Its sockets; short, because a socket's path has at most 107 bytes."""
    host: str = "127.0.0.1"
    device: str = "cpu"
    orphan_seconds: float = 600.0
    tls_dir: Path | None = None
    """Certificate, key and authority, for one that is spoken to over TLS."""

    def command(self) -> list[str]:
        """The agent's command line."""
        argv = [sys.executable, "-m", "shuntserve_core.node", "--name", self.node]
        argv += ["--gpus", str(self.gpus), "--host", self.host, "--device", self.device]
        argv += ["--run-dir", str(self.run_dir), "--log-dir", str(self.directory)]
        argv += ["--token-file", str(self.directory / "token")]
        argv += ["--orphan-seconds", str(self.orphan_seconds)]
        if self.tls_dir is not None:
            argv += ["--tls-dir", str(self.tls_dir)]
        return argv


@frozen
class AgentRecord:
    """An agent that was started."""

    url: str
    pid: int
    process: str
    """What tells it from later processes of its number."""

    @property
    def lives(self) -> bool:
        """Whether it is there."""
        return runs(self.process)


class AgentProcesses:
    """Starts agents, and waits for the end of those that it started."""

    def __init__(self) -> None:
        self._ours: dict[int, asyncio.subprocess.Process] = {}

    async def start(
        self, options: AgentOptions, remember: Callable[[AgentRecord], None]
    ) -> AgentRecord:
        """Start an agent and wait until it listens.

        `remember` is called before this returns; where it raises, or this is cancelled, no agent
        is left.  Raises `UserError` where it does not start.
        """
        private_dir(options.directory)
        private_dir(options.run_dir.parent)
        private_dir(options.run_dir)
        write_private(options.directory / "token", options.token)
        log = options.directory / "agent.log"
        with open_log(log) as errors:
            process = await asyncio.create_subprocess_exec(
                *options.command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        assert process.stdout is not None
        done = False
        try:
            line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
            url = str(json.loads(line)["url"])
            record = AgentRecord(url, process.pid, identity_of(process.pid))
            remember(record)
            done = True
        except (TimeoutError, ValueError, KeyError):
            reason = f"the agent of {options.node} did not start"
            raise UserError(reason, remedy=f"see {quoted(log)}") from None
        finally:
            if not done:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        self._ours[process.pid] = process
        return record

    async def end(self, record: AgentRecord) -> None:
        """Kill an agent, whoever started it; the kernel ends everything that it started."""
        if record.lives:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(record.pid, signal.SIGKILL)
        for _ in range(int(_END_SECONDS / _POLL_SECONDS)):
            if not record.lives:
                break
            await asyncio.sleep(_POLL_SECONDS)
        if ours := self._ours.pop(record.pid, None):
            await ours.wait()
