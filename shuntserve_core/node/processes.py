"""Child processes that never outlive the agent, and whose JSON lines are its events."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from shuntserve_core.files import open_log

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
TERM_SECONDS = 3.0
"""What a child gets between SIGTERM and SIGKILL."""
LINE_LIMIT = 1 << 20
"""Bytes of the longest line that a child may print."""


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent goes; Linux only, a no-op elsewhere."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Be the parent of every descendant that loses its own in the meantime; Linux only.

    Blocks must not overlap.
    """
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 0)


class Process(Protocol):
    """A running process, however it came to be; asyncio's own is one."""

    stdin: asyncio.StreamWriter | None
    stdout: asyncio.StreamReader | None

    @property
    def pid(self) -> int:
        """Its id, which is its group's too."""
        ...

    @property
    def returncode(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        ...

    async def wait(self) -> int:
        """Wait until it has ended; its exit code."""
        ...

    def terminate(self) -> None:
        """Send it SIGTERM.  Raises `ProcessLookupError`."""
        ...


class Child:
    """One child process in a process group of its own.

    `on_line` is called with every JSON object that it prints, `on_exit` once with its exit code.
    """

    def __init__(self, process: Process, name: str) -> None:
        self.process = process
        self.name = name
        self._reader: asyncio.Task[None] | None = None
        self._stopping = False

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        *,
        name: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
        stdin: str = "",
        pass_fds: Sequence[int] = (),
        on_line: Callable[[dict[str, Any]], None],
        on_exit: Callable[[int], None],
    ) -> Child:
        """Start it; `stdin` is written to its standard input, which stays open."""
        with open_log(log) as errors:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=die_with_parent,
                pass_fds=pass_fds,
                limit=LINE_LIMIT,
            )
        return await cls.of(process, name=name, stdin=stdin, on_line=on_line, on_exit=on_exit)

    @classmethod
    async def of(
        cls,
        process: Process,
        *,
        name: str,
        stdin: str = "",
        on_line: Callable[[dict[str, Any]], None],
        on_exit: Callable[[int], None],
    ) -> Child:
        """Take charge of a process that was started in another way."""
        child = cls(process, name)
        child._reader = asyncio.create_task(child._read(on_line, on_exit))
        if stdin:
            assert process.stdin is not None
            with contextlib.suppress(ConnectionError):
                process.stdin.write(stdin.encode())
                await process.stdin.drain()
        return child

    async def _read(
        self, on_line: Callable[[dict[str, Any]], None], on_exit: Callable[[int], None]
    ) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                message = None
            if isinstance(message, dict):
                on_line(message)
            else:
                logger.info("%s: %s", self.name, line.decode(errors="replace").rstrip())
        code = await self.process.wait()
        self._kill_group()
        on_exit(code)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.returncode is None

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def stop(self, grace: float = TERM_SECONDS) -> None:
        """SIGTERM, then SIGKILL to its whole group; returns when it is gone."""
        if self.alive and grace > 0:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), grace)
        self._kill_group()
        await self.process.wait()
        if self._reader is not None and self._reader is not asyncio.current_task():
            await asyncio.wait([self._reader], timeout=1.0)
