"""A worker that a template forked, with the face of `asyncio.subprocess.Process`."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import IO, Self

from shuntserve_core.node.processes import LINE_LIMIT


class ForkedProcess:
    """A child of this process whose program is a fork of a template."""

    def __init__(self, pid: int, stdin: asyncio.StreamWriter, stdout: asyncio.StreamReader) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin: asyncio.StreamWriter | None = stdin
        self.stdout: asyncio.StreamReader | None = stdout
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap, stdin)

    @classmethod
    async def attach(cls, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> Self:
        """Take charge of a child, given our ends of its pipes."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(LINE_LIMIT)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stdout)
        # Nothing is ever read from this one; its protocol has the flow control of writes.
        transport, protocol = await loop.connect_write_pipe(
            lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), stdin
        )
        return cls(pid, asyncio.StreamWriter(transport, protocol, None, loop), reader)

    def _reap(self, stdin: asyncio.StreamWriter) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        stdin.close()
        self._ended.set()

    async def wait(self) -> int:
        """Wait until it has ended; its exit code, or minus the signal that ended it."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        """Send it SIGTERM."""
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
