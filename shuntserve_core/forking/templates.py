"""The template processes of a node, as its agent sees them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from shuntserve_core.files import open_log
from shuntserve_core.forking.process import ForkedProcess
from shuntserve_core.interfaces.engine import Template, WorkerCommand
from shuntserve_core.node.processes import Child, adopting_orphans

logger = logging.getLogger(__name__)

SUPPORTED = sys.platform == "linux"
RESTART_SECONDS = 1.0
"""How long after a template's end another is started in its place."""
_IMPORT_SECONDS = 120.0
_FORK_SECONDS = 20.0
_ANSWER_BYTES = 4096

_Key = tuple[str, tuple[tuple[str, str], ...]]


class TemplateFailed(Exception):
    """No worker can be forked; it can still be started from nothing."""


class Templates:
    """Starts a template where one is wanted, again where one has died, and forks workers."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._running: dict[_Key, TemplateProcess] = {}
        self._lock = asyncio.Lock()
        """Held to start a template, or to fork: one at a time, as adoption demands."""
        self._restarts: set[asyncio.Task[None]] = set()
        self._closed = False

    async def prepare(self, template: Template) -> TemplateProcess:
        """Start this template unless it runs; returns before it has imported anything."""
        key = template.module, tuple(sorted(template.environment.items()))
        async with self._lock:
            running = self._running.get(key)
            if running is None or not running.child.alive:
                log = self._run_dir / f"template-{template.module}.log"
                ended = partial(self._ended, template, key)
                running = self._running[key] = await TemplateProcess.start(template, log, ended)
            return running

    async def fork(
        self,
        command: WorkerCommand,
        template: Template,
        *,
        name: str,
        log: Path,
        on_line: Callable[[dict[str, Any]], None],
        on_exit: Callable[[int], None],
    ) -> Child:
        """Fork a worker, once the template is ready.  Raises `TemplateFailed`."""
        running = await self.prepare(template)
        if not await running.ready():
            raise TemplateFailed(f"the template of {template.module} did not start")
        process = await self._fork(running, command, log)
        stdin = command.stdin
        return await Child.of(process, name=name, stdin=stdin, on_line=on_line, on_exit=on_exit)

    async def _fork(
        self, running: TemplateProcess, command: WorkerCommand, log: Path
    ) -> ForkedProcess:
        stdin_end, stdin = _pipe()
        stdout, stdout_end = _pipe()
        try:
            with stdin_end, stdout_end, open_log(log) as errors:
                streams = [file.fileno() for file in (stdin_end, stdout_end, errors)]
                async with self._lock:
                    with adopting_orphans():
                        pid = await running.fork(command, streams)
        except BaseException:
            stdin.close()
            stdout.close()
            raise
        return await ForkedProcess.attach(pid, stdin, stdout)

    def _ended(self, template: Template, key: _Key, code: int) -> None:
        """One that never got ready is not tried again before somebody wants it."""
        if not self._closed:
            logger.warning("the template of %s ended with code %d", template.module, code)
            if self._running[key].was_ready:
                task = asyncio.create_task(self._restart(template))
                self._restarts.add(task)
                task.add_done_callback(self._restarts.discard)

    async def _restart(self, template: Template) -> None:
        await asyncio.sleep(RESTART_SECONDS)
        await self.prepare(template)

    def describe(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [
            {"module": module, "pid": running.child.process.pid, "ready": running.was_ready}
            for (module, _), running in self._running.items()
            if running.child.alive
        ]

    async def close(self) -> None:
        """End every template; workers live on."""
        self._closed = True
        for task in self._restarts:
            task.cancel()
        await asyncio.gather(*(running.close() for running in self._running.values()))


class TemplateProcess:
    """One template process, and the socket on which it takes requests."""

    def __init__(self, control: socket.socket) -> None:
        self.child: Child
        self._control = control
        self._ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(
        cls, template: Template, log: Path, on_exit: Callable[[int], None]
    ) -> TemplateProcess:
        """Start one; it has not imported anything yet."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self = cls(ours)

        def ended(code: int) -> None:
            self._settle(False)
            ours.close()
            on_exit(code)

        with theirs:
            number = theirs.fileno()
            argv = (sys.executable, "-m", "shuntserve_core.forking", template.module)
            self.child = await Child.start(
                (*argv, "--control", str(number)),
                name=f"template {template.module}",
                log=log,
                environment=template.environment,
                pass_fds=(number,),
                on_line=lambda _: self._settle(True),
                on_exit=ended,
            )
        return self

    def _settle(self, ready: bool) -> None:
        if not self._ready.done():
            self._ready.set_result(ready)

    @property
    def was_ready(self) -> bool:
        """Whether it ever got so far as to be forked."""
        return self._ready.done() and self._ready.result()

    async def ready(self) -> bool:
        """Wait until it can be forked; False if that will never be."""
        try:
            return await asyncio.wait_for(asyncio.shield(self._ready), _IMPORT_SECONDS)
        except TimeoutError:
            await self.close()
            return False

    async def fork(self, command: WorkerCommand, streams: Sequence[int]) -> int:
        """Have it fork a worker with these standard streams; its process id.

        Raises `TemplateFailed`.
        """
        request = json.dumps(_request(command.argv, command.environment)).encode()
        loop = asyncio.get_running_loop()
        try:
            socket.send_fds(self._control, [request], streams)
            async with asyncio.timeout(_FORK_SECONDS):
                answer = await loop.sock_recv(self._control, _ANSWER_BYTES)
        except (OSError, TimeoutError) as error:
            await self.close()  # a late answer would be taken for the next one's
            raise TemplateFailed(f"the template does not answer: {error}") from error
        if not answer:
            raise TemplateFailed("the template has died")
        said = json.loads(answer)
        if "error" in said:
            raise TemplateFailed(said["error"])
        return int(said["pid"])

    async def close(self) -> None:
        """End it."""
        await self.child.stop(0.0)


def _request(argv: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """A worker is called what it would be called had it been started from nothing."""
    return {"title": " ".join(argv), "environment": dict(environment)}


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    """(to read from, to write to)."""
    read, write = os.pipe()
    return os.fdopen(read, "rb", 0), os.fdopen(write, "wb", 0)
