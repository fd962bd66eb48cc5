"""Memory that other processes can map.

Host memory is anonymous (`memfd_create`): it has no name that could be left behind, and is gone
with the last process that holds it, however that process ends.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Protocol

from attrs import frozen

F_SEAL_FUTURE_WRITE = 0x10
"""From linux/fcntl.h (5.1); Python 3.11 does not name it.  Unlike F_SEAL_WRITE it does not mind
that a failed read's traceback still holds a buffer."""


@frozen
class Loan:
    """A way into somebody's memory: a descriptor that the receiver maps, or a device handle."""

    fd: int = -1
    """Owned by whoever holds the loan; -1 for device memory."""
    handle: bytes = b""
    """What the device's library makes of memory that another process may open."""


class Segment(Protocol):
    """Memory for weights: filled once, then read-only for everybody and for good."""

    nbytes: int

    def buffer(self, offset: int, nbytes: int) -> memoryview:
        """Writable host memory where the data of a tensor is to be put."""
        ...

    def commit(self, offset: int, nbytes: int) -> None:
        """The data of a tensor is there, and right."""
        ...

    def seal(self) -> None:
        """End writing."""
        ...

    def lend(self) -> Loan:
        """A read-only way in; raises if the segment is not sealed."""
        ...

    def close(self) -> None:
        """Let go of it; who has mapped it keeps it."""
        ...


class Region(Protocol):
    """KV memory: parts of it change hands."""

    def resize(self, nbytes: int) -> None:
        """Grow."""
        ...

    def lend(self, *, writable: bool) -> Loan:
        """A way in."""
        ...

    def discard(self, offset: int, nbytes: int) -> None:
        """Forget what is there, so that the next owner neither sees it nor pays for it."""
        ...


class Memory(Protocol):
    """Where a store keeps its tensors."""

    device: str

    def segment(self, name: str, nbytes: int) -> Segment:
        """New memory for weights."""
        ...

    def region(self) -> Region:
        """New KV memory, empty."""
        ...


class HostMemory:
    """Host memory."""

    device = "cpu"

    def segment(self, name: str, nbytes: int) -> Segment:
        """New memory for weights."""
        return HostSegment(name, nbytes)

    def region(self) -> Region:
        """New KV memory, empty."""
        return HostRegion()


class HostSegment:
    """Weights in a memfd that the kernel lets nobody write to once it is sealed."""

    def __init__(self, name: str, nbytes: int) -> None:
        self.nbytes = nbytes
        self._fd = _memfd(name, nbytes)
        self._mapping: mmap.mmap | None = mmap.mmap(self._fd, nbytes)

    def buffer(self, offset: int, nbytes: int) -> memoryview:
        """The memory itself."""
        assert self._mapping is not None
        return memoryview(self._mapping)[offset : offset + nbytes]

    def commit(self, offset: int, nbytes: int) -> None:
        """Nothing to do: the buffer is the memory."""

    def seal(self) -> None:
        """Forbid writing and resizing to all, and unmap it here once the last buffer is gone."""
        self._mapping = None
        seals = F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)

    def lend(self) -> Loan:
        """A descriptor opened for reading."""
        assert self._mapping is None
        return Loan(_reopen(self._fd, os.O_RDONLY))

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


class HostRegion:
    """KV memory in a memfd; only who owns a part gets a descriptor to write with."""

    def __init__(self) -> None:
        self._fd = _memfd("kv", 0)

    def resize(self, nbytes: int) -> None:
        """Grow; pages are taken when they are first written to."""
        os.ftruncate(self._fd, nbytes)

    def lend(self, *, writable: bool) -> Loan:
        """A descriptor opened for reading, or for both."""
        return Loan(_reopen(self._fd, os.O_RDWR if writable else os.O_RDONLY))

    def discard(self, offset: int, nbytes: int) -> None:
        """Give the pages back to the kernel: they read as zeros from now on."""
        _punch_hole(self._fd, offset, nbytes)


def _memfd(name: str, nbytes: int) -> int:
    fd = os.memfd_create(f"shuntserve-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    return fd


def _reopen(fd: int, flags: int) -> int:
    """A descriptor of its own, with its own rights, for the same memory."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def _punch_hole(fd: int, offset: int, nbytes: int) -> None:
    import ctypes

    keep_size, punch_hole = 1, 2
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_int(fd), ctypes.c_int(keep_size | punch_hole))
    failed = libc.fallocate(*arguments, ctypes.c_long(offset), ctypes.c_long(nbytes))
    if failed:
        raise OSError(ctypes.get_errno(), "fallocate failed")
