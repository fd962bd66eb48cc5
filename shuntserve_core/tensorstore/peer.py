"""The process at the other end of a connection, and how it is known to have exited.

A connection that ends says little of the process: it may have closed it and live on, and a dying
GPU process may write for a moment longer.  What counts is that the process has exited.  A process
descriptor (pidfd) tells: the kernel makes it readable once every thread is gone, and by then a
thread's memory is unmapped and its files are closed, those of the GPU's driver among them, with
which the driver takes down what the GPU still did for it (Linux, kernel/exit.c: `exit_mm` and
`exit_files`, then `exit_task_work`, then `exit_notify`).

* The kernel notes the process that called `connect`, whichever of its threads did.  Workers forked
  from a template connect for themselves, after the fork.
* A child that was forked later holds the connection too, and may have memory mapped that it
  inherited.  So an exited process is not enough: the connection must have ended as well.
* A process in a PID namespace that this one cannot see has no number here.  Where the kernel gives
  no descriptor by `SO_PEERPIDFD` (before Linux 6.5) nothing is known of it.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import suppress

_SO_PEERPIDFD = 77
"""From asm-generic/socket.h; Python does not name it."""
_CREDENTIALS = struct.Struct("3i")


class Peer:
    """Who connected."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid: int = _CREDENTIALS.unpack(raw)[0]
        self._pidfd = self._open()

    def wait_for_message(self) -> bool:
        """Wait until something can be read, or the process has exited; returns the former.

        The end of the connection can be read, too.
        """
        return self.wait_beside(-1, None) != {self._pidfd}

    def wait_beside(self, fd: int, seconds: float | None) -> set[int]:
        """Wait for a descriptor, the connection or the process; returns those that are ready.

        Whatever was said before the process exited comes first.
        """
        ready = _poll([fd, self._sock.fileno(), self._pidfd], seconds)
        if ready == {self._pidfd}:
            ready |= _poll([self._sock.fileno()], 0)
        return ready

    def gone(self, seconds: float) -> bool:
        """Whether it has exited, and nobody else holds its connection; waits that long."""
        if self._pidfd < 0:
            return False
        return bool(_poll([self._pidfd], seconds)) and self._ended()

    def close(self) -> None:
        """Forget it."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _ended(self) -> bool:
        """Whether the connection has ended; skips what was said and not read."""
        with suppress(OSError):
            while True:
                try:
                    if not self._sock.recv(1 << 16, socket.MSG_DONTWAIT):
                        return True
                except BlockingIOError:
                    return False
        return True  # reset, which is an end too

    def _open(self) -> int:
        """Its process descriptor, or -1 if there is none to be had."""
        with suppress(OSError):
            raw = self._sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4)
            return int.from_bytes(raw, "little", signed=True)
        with suppress(OSError):
            # Older kernels: between connecting and now it may have exited and its number be
            # another's, whose exit then is awaited in vain.
            return os.pidfd_open(self.pid) if self.pid > 0 else -1
        return -1


def _poll(fds: list[int], seconds: float | None) -> set[int]:
    poll = select.poll()
    for fd in fds:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000)}
