"""Host memory: anonymous files (`memfd_create`), which have no name that could be left behind."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterable

from shuntserve_core.tensorstore.memory.addresses import HostRange
from shuntserve_core.tensorstore.memory.interface import (
    KV_CHUNK_BYTES,
    Allocation,
    Ledger,
    Room,
    Segment,
    rounded,
)

F_SEAL_FUTURE_WRITE = 0x10
"""From linux/fcntl.h (5.1); Python 3.11 does not name it.  Unlike F_SEAL_WRITE it does not mind
that a failed read's traceback still holds a buffer."""


class HostMemory:
    """Host memory; pages are taken when they are first written to."""

    device = tensor_device = "cpu"
    granularity = mmap.PAGESIZE
    staging_bytes = 0

    def __init__(self, kv_chunk_bytes: int = KV_CHUNK_BYTES) -> None:
        self.kv_chunk_bytes = rounded(kv_chunk_bytes, self.granularity)
        self._ledger = Ledger()

    @property
    def allocated_bytes(self) -> int:
        """What was allocated here and is still held, whether written to or not."""
        return self._ledger.nbytes

    def allocate(self, nbytes: int) -> HostAllocation:
        """Zeros."""
        nbytes = rounded(nbytes, self.granularity)
        return HostAllocation(_memfd("memory", nbytes), nbytes, self._ledger)

    def adopt(self, descriptor: int, nbytes: int) -> HostAllocation:
        """What another process has lent.  Raises ValueError if it is smaller."""
        allocation = HostAllocation(descriptor, nbytes, Ledger())
        size = os.fstat(descriptor).st_size
        if size < nbytes:
            allocation.close()
            raise ValueError(f"{nbytes} bytes were lent, and there are {size}")
        return allocation

    def zero(self, allocations: Iterable[Allocation]) -> None:
        """Give the pages back to the kernel: they read as zeros from now on."""
        for allocation in allocations:
            assert isinstance(allocation, HostAllocation)
            _punch_hole(allocation.fd, 0, allocation.nbytes)

    def reserve(self, nbytes: int) -> HostRange:
        """Addresses without memory."""
        return HostRange(nbytes)

    def segment(self, name: str, nbytes: int) -> HostSegment:
        """New memory for weights."""
        return HostSegment(name, rounded(nbytes, self.granularity), self._ledger)

    def filling(self) -> HostFilling:
        """Segments are read into straight away."""
        return HostFilling()

    def room(self) -> Room | None:
        """None: the host belongs to others too."""
        return None


class HostAllocation:
    """A file in memory."""

    def __init__(self, fd: int, nbytes: int, ledger: Ledger) -> None:
        self.fd, self.nbytes = fd, nbytes
        self._ledger = ledger
        ledger.add(nbytes)

    def lend(self, *, writable: bool) -> int:
        """A descriptor opened for reading, or for both."""
        return _reopen(self.fd, os.O_RDWR if writable else os.O_RDONLY)

    def close(self) -> None:
        """Stop holding it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._ledger.add(-self.nbytes)


class HostSegment:
    """Weights in a memfd that the kernel lets nobody write to once it is sealed."""

    def __init__(self, name: str, nbytes: int, ledger: Ledger) -> None:
        self.nbytes, self._ledger = nbytes, ledger
        ledger.add(nbytes)
        self._fd = _memfd(name, nbytes)
        self._mapping: mmap.mmap | None = mmap.mmap(self._fd, nbytes)

    def buffer(self, offset: int, nbytes: int) -> memoryview:
        """The memory itself."""
        assert self._mapping is not None
        return memoryview(self._mapping)[offset : offset + nbytes]

    def seal(self) -> None:
        """Forbid writing and resizing to all, and unmap it here once the last buffer is gone."""
        self._mapping = None
        seals = F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)

    def lend(self) -> int:
        """A descriptor opened for reading."""
        assert self._mapping is None
        return _reopen(self._fd, os.O_RDONLY)

    def close(self) -> None:
        """Stop holding it."""
        os.close(self._fd)
        self._ledger.add(-self.nbytes)


class HostFilling:
    """Nothing lies between what is read and its place."""

    def take(self, segment: Segment, offset: int, nbytes: int) -> memoryview:
        """The place itself."""
        assert isinstance(segment, HostSegment)
        return segment.buffer(offset, nbytes)

    def put(self, segment: Segment, offset: int, buffer: memoryview) -> None:
        """It is there."""
        buffer.release()

    def drop(self, buffer: memoryview) -> None:
        """What is there does not matter."""
        buffer.release()

    def finish(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """There is nothing to free."""


def _memfd(name: str, nbytes: int) -> int:
    fd = os.memfd_create(f"shuntserve-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    return fd


def _reopen(fd: int, flags: int) -> int:
    """A descriptor of its own, with its own rights, for the same memory."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def _punch_hole(fd: int, offset: int, nbytes: int) -> None:
    keep_size, punch_hole = 1, 2
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_int(fd), ctypes.c_int(keep_size | punch_hole))
    failed = libc.fallocate(*arguments, ctypes.c_long(offset), ctypes.c_long(nbytes))
    if failed:
        raise OSError(ctypes.get_errno(), "fallocate failed")
