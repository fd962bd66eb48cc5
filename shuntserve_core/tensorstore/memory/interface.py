"""What a tensor store and its engines want of memory, on a host and on a GPU alike.

Physical memory (`Allocation`) and addresses (`AddressRange`) are apart: an allocation is made by
the store, passed on as a file descriptor, and mapped at addresses by whoever has one.  The kernel
counts who holds it, so nothing has to be given back by a process that dies.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from attrs import frozen

from shuntserve_core.errors import UserError

KV_CHUNK_BYTES = 32 << 20
"""What KV memory is lent by: 80 GB are 2,400 chunks, and a lease wastes less than one of them."""


class OutOfMemory(UserError):
    """The device has no room for it just now."""


@frozen
class Room:
    """Memory of a device in bytes, whoever holds it."""

    free: int
    total: int


class Allocation(Protocol):
    """Physical memory.  It is free once all who hold it or have mapped it have let it go."""

    nbytes: int

    def lend(self, *, writable: bool) -> int:
        """A new descriptor for another process, which the caller must close.

        Only host memory knows read-only descriptors; on a GPU it is the borrower who maps so.
        """
        ...

    def close(self) -> None:
        """Stop holding it.  Mappings stay, here and elsewhere."""
        ...


class AddressRange(Protocol):
    """Addresses that nothing else in this process gets, while anybody refers to this object."""

    address: int
    nbytes: int

    def back(self, allocations: Iterable[Allocation], *, writable: bool) -> None:
        """Map whole allocations one behind the other, in the place of all that was there.

        The same one may come again and again.  Each is needed only until the next is taken.
        Raises ValueError for more than the range holds; after any error nothing is mapped.
        """
        ...

    def clear(self) -> None:
        """Wait for the device to be done with it, and unmap everything."""
        ...


class Segment(Protocol):
    """Memory for weights: filled once by a `Filling`, then read-only for everybody and for good."""

    nbytes: int
    """What it takes of the device."""

    def seal(self) -> None:
        """End writing, once everything is there."""
        ...

    def lend(self) -> int:
        """A descriptor to map it read-only, which the caller must close."""
        ...

    def close(self) -> None:
        """Stop holding it; who has mapped it keeps it."""
        ...


class Filling(Protocol):
    """The way of data into segments."""

    def take(self, segment: Segment, offset: int, nbytes: int) -> memoryview:
        """Writable host memory for some bytes of a segment.

        Waits until there is some; of GPUs there is little.  Every buffer must come back by `put`
        or `drop`.
        """
        ...

    def put(self, segment: Segment, offset: int, buffer: memoryview) -> None:
        """The bytes are in the buffer: have them at their place by the time of `finish`."""
        ...

    def drop(self, buffer: memoryview) -> None:
        """The buffer is not used."""
        ...

    def finish(self) -> None:
        """Wait until all that was put is at its place."""
        ...

    def close(self) -> None:
        """Free what it takes."""
        ...


@runtime_checkable
class Memory(Protocol):
    """Memory of one device.  Thread-safe."""

    device: str
    """`cpu` or `cuda:N`."""
    tensor_device: str
    """What torch calls the device of these addresses."""
    granularity: int
    """Sizes in bytes are rounded up to multiples of it."""
    kv_chunk_bytes: int
    """What KV memory is lent by; a multiple of `granularity`."""

    def allocate(self, nbytes: int) -> Allocation:
        """Physical memory with anything in it.  Raises `OutOfMemory`."""
        ...

    def adopt(self, descriptor: int, nbytes: int) -> Allocation:
        """What another process has lent; takes the descriptor over, also when it raises."""
        ...

    def zero(self, allocations: Iterable[Allocation]) -> None:
        """Fill with zeros, and return once they are there."""
        ...

    def reserve(self, nbytes: int) -> AddressRange:
        """Addresses without memory; `nbytes` is rounded up to the granularity."""
        ...

    def segment(self, name: str, nbytes: int) -> Segment:
        """New memory for weights.  Raises `OutOfMemory`."""
        ...

    def filling(self) -> Filling:
        """A way to fill segments; closed after use."""
        ...

    @property
    def allocated_bytes(self) -> int:
        """What was allocated here and is still held, segments included."""
        ...

    @property
    def staging_bytes(self) -> int:
        """Host memory that fillings take now, beyond the segments."""
        ...

    def room(self) -> Room | None:
        """How full the device is; None for a host."""
        ...


class Ledger:
    """Bytes that are taken and given back; thread-safe."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        """Take so many, or with a negative number give them back."""
        with self._lock:
            self.nbytes += nbytes


def rounded(nbytes: int, granularity: int) -> int:
    """The least multiple of the granularity that holds `nbytes`, and at least one."""
    return -(-max(nbytes, 1) // granularity) * granularity
