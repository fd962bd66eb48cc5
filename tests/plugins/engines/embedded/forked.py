"""Ranks forked from a template, with as much of `Popen` as tests use."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from types import TracebackType
from typing import Protocol, Self

from shuntserve_core.interfaces.engine import Template, WorkerCommand
from shuntserve_core.node.processes import adopting_orphans


class ForkedRank:
    """A child of this process that a template forked."""

    def __init__(self, pid: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self.stdin = os.fdopen(stdin, "w")
        self.stdout = os.fdopen(stdout)
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)
        self._reaping = threading.Lock()

    def send_signal(self, number: int) -> None:
        with self._reaping:
            if self.returncode is None:
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ended, _, _ = select.select([self._pidfd], [], [], timeout)
            assert ended, f"{self.pid} has not ended within {timeout} s"
        with self._reaping:
            if self.returncode is None:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                os.close(self._pidfd)
        return self.returncode


class HasTemplate(Protocol):
    """An engine."""

    @property
    def template(self) -> Template:
        """What is imported once for all of its ranks."""
        ...


class TemplateForTests:
    """An engine's template, run without a node agent."""

    def __init__(self, engine: HasTemplate) -> None:
        template = engine.template
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-m", "shuntserve_core.forking", template.module]
            self.process = subprocess.Popen(
                [*argv, "--control", str(theirs.fileno())],
                env={**os.environ, **template.environment},
                pass_fds=[theirs.fileno()],
                stdout=subprocess.PIPE,
            )
        assert self.process.stdout
        assert json.loads(self.process.stdout.readline())["event"] == "ready"

    def start(self, command: WorkerCommand) -> ForkedRank:
        """Fork a rank; its errors are the template's."""
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        request = {"title": " ".join(command.argv), "environment": dict(command.environment)}
        with adopting_orphans():
            streams = [theirs_in, theirs_out, 2]
            socket.send_fds(self._control, [json.dumps(request).encode()], streams)
            answer = json.loads(self._control.recv(4096))
        os.close(theirs_in)
        os.close(theirs_out)
        return ForkedRank(answer["pid"], ours_in, ours_out)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._control.close()
        assert self.process.wait(10) == 0
        assert self.process.stdout
        self.process.stdout.close()
