"""Host addresses, reserved once and backed with memory that may change.

There is no library for it: Python's `mmap` cannot map at a given address.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from shuntserve_core.tensorstore.memory.interface import Allocation

_PROT_NONE, _MAP_FIXED, _MAP_NORESERVE = 0, 0x10, 0x4000
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_mprotect = _libc.mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@runtime_checkable
class HostFile(Protocol):
    """An allocation that is a file."""

    fd: int
    nbytes: int


class HostRange:
    """`nbytes` of addresses, rounded up to pages, that nothing else in this process gets.

    They are freed with the last reference to this object.  Touching a part without memory ends the
    process, as any wild pointer does.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = -(-max(nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.address = _map(0, self.nbytes, _PROT_NONE, _nothing())
        finalizer = weakref.finalize(self, _munmap, self.address, self.nbytes)
        finalizer.atexit = False  # a tensor may be in use to the very end

    def back(self, allocations: Iterable[Allocation], *, writable: bool) -> None:
        """Map files in memory one behind the other, in the place of all that was there."""
        self.clear()
        offset = 0
        try:
            for allocation in allocations:
                assert isinstance(allocation, HostFile)
                self._map(offset, allocation.fd, allocation.nbytes, writable)
                offset += allocation.nbytes
        except BaseException:
            self.clear()
            raise

    def clear(self) -> None:
        """Take all memory away; the addresses stay reserved."""
        map_nothing(self.address, self.nbytes)

    def _map(self, offset: int, fd: int, nbytes: int, writable: bool) -> None:
        if nbytes <= 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + nbytes} of a range of {self.nbytes}")
        if nbytes % mmap.PAGESIZE:
            raise ValueError(f"{nbytes} bytes are not whole pages")
        size = os.fstat(fd).st_size
        if nbytes > size:  # a touch beyond the end would be fatal
            raise ValueError(f"{nbytes} bytes to map, and the memory has {size}")
        map_file(self.address + offset, nbytes, fd, writable=writable)


def map_file(address: int, nbytes: int, fd: int, *, writable: bool) -> None:
    """Map the beginning of a file at reserved addresses, in the place of earlier ones."""
    protection = _protection(writable=writable)
    _map(address, nbytes, protection, mmap.MAP_SHARED | _MAP_FIXED, fd)


def map_nothing(address: int, nbytes: int) -> None:
    """Take the memory at reserved addresses away."""
    _map(address, nbytes, _PROT_NONE, _nothing() | _MAP_FIXED)


def allow(address: int, nbytes: int, *, readable: bool = True, writable: bool) -> None:
    """Let mapped memory be read, read and written, or not be touched.  Raises OSError."""
    protection = _protection(writable=writable) if readable else _PROT_NONE
    if _mprotect(address, nbytes, protection):
        code = ctypes.get_errno()
        raise OSError(code, f"mprotect of {nbytes} bytes: {os.strerror(code)}")


def _protection(*, writable: bool) -> int:
    return mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)


def _nothing() -> int:
    return mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE


def _map(address: int, nbytes: int, protection: int, flags: int, fd: int = -1) -> int:
    result = _mmap(address or None, nbytes, protection, flags, fd, 0)
    if result is None or result == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {nbytes} bytes: {os.strerror(code)}")
    return int(result)
