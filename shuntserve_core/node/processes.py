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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
TERM_SECONDS = 3.0
"""What a child gets between SIGTERM and SIGKILL."""
_LINE_LIMIT = 1 << 20


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent goes; Linux only, a no-op elsewhere."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """One child process in a process group of its own.

    `on_line` is called with every JSON object that it prints, `on_exit` once with its exit code.
    """

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
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
        on_line: Callable[[dict[str, Any]], None],
        on_exit: Callable[[int], None],
    ) -> Child:
        """Start it; `stdin` is written to its standard input, which stays open."""
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=_die_with_parent,
                limit=_LINE_LIMIT,
            )
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
