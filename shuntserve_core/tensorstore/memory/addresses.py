"""Ranges of host addresses, reserved once and backed with memory that may change.

There is no library for it: Python's `mmap` cannot map at a given address.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

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


class HostRange:
    """`nbytes` of addresses, rounded up to pages, that nothing else in this process gets.

    They are freed with the last reference to this object.  Touching a part without memory ends the
    process, as any wild pointer does.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = -(-max(nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self.address = _map(0, self.nbytes, _PROT_NONE, _nothing())
        weakref.finalize(self, _munmap, self.address, self.nbytes)

    def map(self, offset: int, fd: int, nbytes: int, *, writable: bool, fd_offset: int = 0) -> None:
        """Back a part with a file's memory, from its byte `fd_offset`, in place of what was there.

        Raises ValueError beyond the range, between pages, or beyond the file's end, where a touch
        would be fatal.
        """
        self._check(offset, nbytes)
        if fd_offset + nbytes > os.fstat(fd).st_size:
            raise ValueError(f"{nbytes} bytes from {fd_offset} are more than the memory has")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = mmap.MAP_SHARED | _MAP_FIXED
        _map(self.address + offset, nbytes, protection, flags, fd, fd_offset)

    def unmap(self) -> None:
        """Take all memory away; the addresses stay reserved."""
        _map(self.address, self.nbytes, _PROT_NONE, _nothing() | _MAP_FIXED)

    def _check(self, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes <= 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + nbytes} of a range of {self.nbytes}")
        if offset % mmap.PAGESIZE or nbytes % mmap.PAGESIZE:
            raise ValueError(f"bytes {offset} to {offset + nbytes} are not whole pages")


def _nothing() -> int:
    return mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE


def _map(
    address: int, nbytes: int, protection: int, flags: int, fd: int = -1, offset: int = 0
) -> int:
    result = _mmap(address or None, nbytes, protection, flags, fd, offset)
    if result is None or result == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {nbytes} bytes: {os.strerror(code)}")
    return int(result)
