"""A CUDA driver without a GPU, which keeps the rules of virtual memory management.

Memory of the card is files in memory, so real descriptors go through real sockets to real
processes, and the kernel counts who holds what, as it does with a driver.  Every process that
opens the same card by its name sees the same memory.  Breaking a rule raises `CudaError`:

* sizes and addresses are multiples of the granularity, and a map begins at byte 0 of its memory
* no handle, address range, stream or pinned buffer is used or freed that is not there (any more)
* nothing is mapped over a mapping or beside a reservation; unmapping is by whole mappings
* a range is touched only after `set_access`, and written only where that said so
* an address range is free of mappings before it is given up
* a descriptor is open, and of this card

Addresses are the process's own (`host_addressable`), so that a processor can stand in for the
GPU's: what it may not touch is a fault.  Copies are done when their stream is waited for.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from attrs import define, field, frozen

from shuntserve_core.tensorstore.memory.addresses import HostRange, allow, map_file, map_nothing
from shuntserve_core.tensorstore.memory.driver import (
    INVALID_VALUE,
    OUT_OF_MEMORY,
    CudaError,
)

GRANULARITY = 2 << 20
_INVALID_HANDLE, _NOT_PERMITTED = 400, 800


@frozen
class FakeCard:
    """A card that processes of this machine share by its name."""

    name: str = field(factory=lambda: f"card-{uuid.uuid4().hex[:12]}")
    nbytes: int = 1 << 30
    shared: bool = True
    """Whether other processes open it too.  Looking at what they hold is slow."""

    @property
    def label(self) -> str:
        """What the files of its memory are called."""
        return f"fake-{self.name}"

    def used(self) -> int:
        """Bytes that any process holds or has mapped, as the kernel sees it."""
        sizes: dict[int, int] = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it may end, or be somebody else's
                for inode, size in _held(process, f"memfd:{self.label} "):
                    sizes[inode] = max(size, sizes.get(inode, 0))
        return sum(sizes.values())


def _held(process: Path, label: str) -> Iterator[tuple[int, int]]:
    with suppress(OSError):
        for fd in (process / "fd").iterdir():
            with suppress(OSError):
                if f"/{label}" in str(fd.readlink()):
                    status = fd.stat()
                    yield status.st_ino, status.st_size
    for line in (process / "maps").read_text().splitlines():
        if f"/{label}" in line:
            span, _, _, _, inode, *_ = line.split()
            low, high = (int(number, 16) for number in span.split("-"))
            yield int(inode), high - low


@define(eq=False)
class _Physical:
    fd: int
    nbytes: int
    inode: int


@define
class _Mapping:
    physical: _Physical
    nbytes: int
    allowed: str = ""
    """`r`, `rw`, or nothing."""


@define(eq=False)
class _Copy:
    address: int
    source: int
    nbytes: int


class FakeDriver:
    """A process's driver of a card."""

    host_addressable = True

    def __init__(
        self, card: FakeCard | None = None, *, ordinal: int = 0, granularity: int = GRANULARITY
    ) -> None:
        self.card = card or FakeCard()
        self.ordinal, self.granularity = ordinal, granularity
        self.calls: list[str] = []
        """Names of all calls so far, for tests that count them."""
        self._handles: dict[int, _Physical] = {}
        self._ranges: dict[int, tuple[HostRange, int]] = {}
        self._mappings: dict[int, _Mapping] = {}
        self._pinned: dict[int, mmap.mmap] = {}
        self._streams: dict[int, list[_Copy]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()

    @property
    def leftovers(self) -> dict[str, int]:
        """How many handles, ranges, mappings, pinned buffers and streams there are."""
        kinds = ("handles", "ranges", "mappings", "pinned", "streams")
        return {kind: len(getattr(self, f"_{kind}")) for kind in kinds}

    def create(self, nbytes: int) -> int:
        """Physical memory, full of rubbish: CUDA promises no zeros."""
        with self._begin("create"):
            self._whole("create", nbytes)
            if self._used() + nbytes > self.card.nbytes:
                raise CudaError("create", OUT_OF_MEMORY, "out of memory")
            fd = os.memfd_create(self.card.label, os.MFD_CLOEXEC)
            os.ftruncate(fd, nbytes)
            for place in (0, nbytes - 8):
                os.pwrite(fd, b"rubbish!", place)
            return self._handle(fd, nbytes)

    def release(self, handle: int) -> None:
        """The kernel keeps what is mapped or lent."""
        with self._begin("release"):
            os.close(self._physical("release", handle).fd)
            del self._handles[handle]

    def export(self, handle: int) -> int:
        """A descriptor of its own."""
        with self._begin("export"):
            fd = self._physical("export", handle).fd
            return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)

    def import_(self, descriptor: int) -> int:
        """Of this card only."""
        with self._begin("import"):
            try:
                name = Path(f"/proc/self/fd/{descriptor}").readlink().name
                size = os.fstat(descriptor).st_size
            except OSError as error:
                raise CudaError("import", INVALID_VALUE, "no such descriptor") from error
            if not name.startswith(f"memfd:{self.card.label} "):
                raise CudaError("import", INVALID_VALUE, f"not memory of this GPU: {name}")
            return self._handle(os.dup(descriptor), size)

    def reserve(self, nbytes: int) -> int:
        """Addresses of this process."""
        with self._begin("reserve"):
            self._whole("reserve", nbytes)
            # Aligned as a GPU's: the rest of a larger range is never used.
            whole = HostRange(nbytes + self.granularity)
            address = -(-whole.address // self.granularity) * self.granularity
            self._ranges[address] = (whole, nbytes)
            return address

    def free(self, address: int, nbytes: int) -> None:
        """A whole range, with nothing mapped."""
        with self._begin("free"):
            if address not in self._ranges or self._ranges[address][1] != nbytes:
                raise CudaError("free", INVALID_VALUE, "not a reserved range")
            if self._overlapping(address, nbytes):
                raise CudaError("free", INVALID_VALUE, "something is mapped there")
            del self._ranges[address]

    def map(self, address: int, nbytes: int, offset: int, handle: int) -> None:
        """All of it, where nothing is."""
        with self._begin("map"):
            physical = self._physical("map", handle)
            self._whole("map", nbytes, address)
            if offset or nbytes != physical.nbytes:
                raise CudaError("map", INVALID_VALUE, "not the whole allocation")
            if not any(
                low <= address and address + nbytes <= low + reserved
                for low, (_, reserved) in self._ranges.items()
            ):
                raise CudaError("map", INVALID_VALUE, "addresses that are not reserved")
            if self._overlapping(address, nbytes):
                raise CudaError("map", INVALID_VALUE, "something is mapped there")
            map_file(address, nbytes, physical.fd, writable=True)
            allow(address, nbytes, readable=False, writable=False)
            self._mappings[address] = _Mapping(physical, nbytes)

    def unmap(self, address: int, nbytes: int) -> None:
        """Whole mappings, one behind the other."""
        with self._begin("unmap"):
            whole = self._exactly("unmap", address, nbytes)
            if any(
                copy.address < address + nbytes and address < copy.address + copy.nbytes
                for copies in self._streams.values()
                for copy in copies
            ):
                raise CudaError("unmap", INVALID_VALUE, "a copy is under way there")
            for start in whole:
                map_nothing(start, self._mappings.pop(start).nbytes)

    def set_access(self, address: int, nbytes: int, *, writable: bool) -> None:
        """Whole mappings, one behind the other."""
        with self._begin("set_access"):
            for start in self._exactly("set_access", address, nbytes):
                mapping = self._mappings[start]
                mapping.allowed = "rw" if writable else "r"
                allow(start, mapping.nbytes, writable=writable)

    def zero(self, address: int, nbytes: int) -> None:
        """Only where writing is allowed."""
        with self._begin("zero"):
            self._touch("zero", address, nbytes)
            ctypes.memset(address, 0, nbytes)

    def copy(self, address: int, source: int, nbytes: int, stream: int) -> None:
        """Done once the stream is waited for, so that nobody relies on luck."""
        with self._begin("copy"):
            self._touch("copy", address, nbytes)
            if not any(
                low <= source and source + nbytes <= low + len(pinned)
                for low, pinned in self._pinned.items()
            ):
                raise CudaError("copy", INVALID_VALUE, "the source is not pinned")
            if stream not in self._streams:
                raise CudaError("copy", _INVALID_HANDLE, "no such stream")
            self._streams[stream].append(_Copy(address, source, nbytes))

    def pin(self, nbytes: int) -> int:
        """Host memory."""
        with self._begin("pin"):
            memory = mmap.mmap(-1, nbytes)
            address = ctypes.addressof(ctypes.c_uint8.from_buffer(memory))
            self._pinned[address] = memory
            return address

    def unpin(self, address: int) -> None:
        """Not twice, and not while something is copied from there."""
        with self._begin("unpin"):
            if address not in self._pinned:
                raise CudaError("unpin", INVALID_VALUE, "not pinned memory")
            stop = address + len(self._pinned[address])
            if any(
                address <= copy.source < stop
                for copies in self._streams.values()
                for copy in copies
            ):
                raise CudaError("unpin", INVALID_VALUE, "a copy is under way from there")
            del self._pinned[address]

    def stream(self) -> int:
        """A new one."""
        with self._begin("stream"):
            number = next(self._numbers)
            self._streams[number] = []
            return number

    def destroy_stream(self, stream: int) -> None:
        """Not while a copy is under way: CUDA would let it go on, and say nothing of its end."""
        with self._begin("destroy_stream"):
            if self._streams.get(stream):
                raise CudaError("destroy_stream", INVALID_VALUE, "a copy is under way")
            if stream not in self._streams:
                raise CudaError("destroy_stream", _INVALID_HANDLE, "no such stream")
            del self._streams[stream]

    def synchronize(self, stream: int | None = None) -> None:
        """Do the copies."""
        with self._begin("synchronize"):
            if stream is not None and stream not in self._streams:
                raise CudaError("synchronize", _INVALID_HANDLE, "no such stream")
            for number in list(self._streams) if stream is None else [stream]:
                for copy in self._streams[number]:
                    ctypes.memmove(copy.address, copy.source, copy.nbytes)
                self._streams[number].clear()

    def memory(self) -> tuple[int, int]:
        """Free and all bytes; this card has no contexts that take any."""
        with self._begin("memory"):
            return self.card.nbytes - self._used(), self.card.nbytes

    def _used(self) -> int:
        if self.card.shared:
            return self.card.used()
        held = [*self._handles.values(), *(m.physical for m in self._mappings.values())]
        return sum({one.inode: one.nbytes for one in held}.values())

    def _begin(self, call: str) -> threading.RLock:
        self.calls.append(call)
        return self._lock

    def _handle(self, fd: int, nbytes: int) -> int:
        number = next(self._numbers)
        self._handles[number] = _Physical(fd, nbytes, os.fstat(fd).st_ino)
        return number

    def _physical(self, call: str, handle: int) -> _Physical:
        if handle not in self._handles:
            raise CudaError(call, INVALID_VALUE, f"no handle {handle}")
        return self._handles[handle]

    def _whole(self, call: str, *numbers: int) -> None:
        if any(number <= 0 or number % self.granularity for number in numbers):
            raise CudaError(call, INVALID_VALUE, f"{numbers} are not multiples of the granularity")

    def _overlapping(self, address: int, nbytes: int) -> list[int]:
        return sorted(
            start
            for start, mapping in self._mappings.items()
            if start < address + nbytes and address < start + mapping.nbytes
        )

    def _exactly(self, call: str, address: int, nbytes: int) -> list[int]:
        """Mappings that fill a range without a gap, and do not reach beyond it."""
        whole, end = self._overlapping(address, nbytes), address
        for start in whole:
            if start != end:
                break
            end += self._mappings[start].nbytes
        if end != address + nbytes or not whole:
            raise CudaError(call, INVALID_VALUE, "not whole mappings, one behind the other")
        return whole

    def _touch(self, call: str, address: int, nbytes: int) -> None:
        """Raise unless all of a range is mapped and may be written."""
        end = address
        for start in self._overlapping(address, nbytes):
            if start > end or self._mappings[start].allowed != "rw":
                break
            end = start + self._mappings[start].nbytes
        if end < address + nbytes:
            raise CudaError(call, _NOT_PERMITTED, "an illegal memory access")
