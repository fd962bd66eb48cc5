"""Memory of a GPU through CUDA's virtual memory management.

Physical memory is made with `cuMemCreate`, exported as a file descriptor, and mapped where a range
of addresses was reserved.  The driver frees it with the last handle, mapping or descriptor: also
when the processes that had them were killed.  Nothing here uses torch's allocator, so that its
settings (`PYTORCH_CUDA_ALLOC_CONF`) do not matter.
"""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import threading
import weakref
from collections.abc import Iterable

from shuntserve_core.tensorstore.memory.driver import (
    INVALID_VALUE,
    NOT_SUPPORTED,
    OUT_OF_MEMORY,
    CudaError,
    Driver,
)
from shuntserve_core.tensorstore.memory.interface import (
    KV_CHUNK_BYTES,
    Allocation,
    Ledger,
    OutOfMemory,
    Room,
    Segment,
    rounded,
)

STAGING_BUFFERS = 16
STAGING_BUFFER_BYTES = 8 << 20
"""As much as one request to a weight store reads."""

log = logging.getLogger(__name__)


class CudaMemory:
    """Memory of the driver's GPU."""

    def __init__(self, driver: Driver, kv_chunk_bytes: int = KV_CHUNK_BYTES) -> None:
        self.driver = driver
        self.device = f"cuda:{driver.ordinal}"
        self.tensor_device = "cpu" if driver.host_addressable else self.device
        self.granularity = driver.granularity
        self.kv_chunk_bytes = rounded(kv_chunk_bytes, self.granularity)
        self.staging = Ledger()
        self._ledger = Ledger()

    @property
    def allocated_bytes(self) -> int:
        """What was allocated here and is still held."""
        return self._ledger.nbytes

    @property
    def staging_bytes(self) -> int:
        """Pinned host memory."""
        return self.staging.nbytes

    def allocate(self, nbytes: int) -> CudaAllocation:
        """Physical memory with anything in it.  Raises `OutOfMemory`."""
        nbytes = rounded(nbytes, self.granularity)
        try:
            return CudaAllocation(self.driver, self.driver.create(nbytes), nbytes, self._ledger)
        except CudaError as error:
            if error.code != OUT_OF_MEMORY:
                raise
            free, total = self.driver.memory()
            raise OutOfMemory(
                f"no room for {nbytes} bytes: {free} of {total} are free", where=self.device
            ) from error

    def adopt(self, descriptor: int, nbytes: int) -> CudaAllocation:
        """What another process has lent."""
        try:
            handle = self.driver.import_(descriptor)
            return CudaAllocation(self.driver, handle, nbytes, Ledger())
        finally:
            os.close(descriptor)

    def zero(self, allocations: Iterable[Allocation]) -> None:
        """Map them for as long as it takes."""
        chosen = list(allocations)
        if not chosen:
            return
        window = self.reserve(sum(allocation.nbytes for allocation in chosen))
        try:
            window.back(chosen, writable=True)
            self.driver.zero(window.address, window.nbytes)
        finally:
            window.free()

    def reserve(self, nbytes: int) -> CudaRange:
        """Addresses without memory."""
        return CudaRange(self.driver, rounded(nbytes, self.granularity))

    def segment(self, name: str, nbytes: int) -> CudaSegment:
        """New memory for weights."""
        return CudaSegment(self, self.allocate(nbytes))

    def filling(self) -> CudaFilling:
        """A ring of pinned buffers."""
        return CudaFilling(self)

    def room(self) -> Room:
        """What the driver says, other processes' memory and contexts included."""
        return Room(*self.driver.memory())


class CudaAllocation:
    """A handle of the driver's."""

    def __init__(self, driver: Driver, handle: int, nbytes: int, ledger: Ledger) -> None:
        self.handle, self.nbytes = handle, nbytes
        self._driver, self._ledger = driver, ledger
        self._open = True
        ledger.add(nbytes)

    def lend(self, *, writable: bool) -> int:
        """A descriptor; CUDA knows no read-only ones."""
        return self._driver.export(self.handle)

    def close(self) -> None:
        """Give the handle up."""
        if self._open:
            self._open = False
            self._driver.release(self.handle)
            self._ledger.add(-self.nbytes)


class CudaRange:
    """Addresses of `cuMemAddressReserve`, freed with the last reference to this object."""

    def __init__(self, driver: Driver, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = driver.reserve(nbytes)
        self._driver = driver
        self._mapped: list[tuple[int, int]] = []
        self._finalizer = weakref.finalize(
            self, _free_range, driver, self.address, nbytes, self._mapped
        )
        self._finalizer.atexit = False  # the driver may be gone; the kernel frees everything

    def back(self, allocations: Iterable[Allocation], *, writable: bool) -> None:
        """Map whole allocations one behind the other, in the place of all that was there."""
        self.clear()
        end = self.address
        try:
            for allocation in allocations:
                assert isinstance(allocation, CudaAllocation)
                nbytes = allocation.nbytes
                if end + nbytes > self.address + self.nbytes:
                    start = end - self.address
                    raise ValueError(
                        f"bytes {start} to {start + nbytes} of a range of {self.nbytes}"
                    )
                self._driver.map(end, nbytes, 0, allocation.handle)
                self._mapped.append((end, nbytes))
                end += nbytes
            if end > self.address:
                self._allow(end - self.address, writable)
        except BaseException:
            self.clear()
            raise

    def clear(self) -> None:
        """Wait for the GPU, and unmap everything."""
        if self._mapped:
            self._driver.synchronize()
        _unmap(self._driver, self._mapped)

    def free(self) -> None:
        """Give the addresses up now."""
        self._finalizer()

    def _allow(self, nbytes: int, writable: bool) -> None:
        try:
            self._driver.set_access(self.address, nbytes, writable=writable)
        except CudaError as error:
            if writable or error.code not in (NOT_SUPPORTED, INVALID_VALUE):
                raise
            self._driver.set_access(self.address, nbytes, writable=True)
            log.warning("this driver maps nothing read-only: weights are protected by trust alone")


def _unmap(driver: Driver, mapped: list[tuple[int, int]]) -> None:
    while mapped:
        driver.unmap(*mapped[-1])
        mapped.pop()


def _free_range(driver: Driver, address: int, nbytes: int, mapped: list[tuple[int, int]]) -> None:
    _unmap(driver, mapped)
    driver.free(address, nbytes)


class CudaSegment:
    """Weights on the GPU, mapped here only while they are filled."""

    def __init__(self, memory: CudaMemory, allocation: CudaAllocation) -> None:
        self.nbytes = allocation.nbytes
        self._allocation = allocation
        self._range: CudaRange | None = memory.reserve(allocation.nbytes)
        try:
            self._range.back([allocation], writable=True)
        except BaseException:
            allocation.close()
            raise

    def address(self, offset: int, nbytes: int) -> int:
        """Where to write.  Raises ValueError beyond the segment, or once it is sealed."""
        if self._range is None or offset < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"no bytes {offset} to {offset + nbytes} to be written")
        return self._range.address + offset

    def seal(self) -> None:
        """Unmap it: nobody in this process can write to it, or read it, any more."""
        assert self._range is not None
        self._range.clear()
        self._range.free()
        self._range = None

    def lend(self) -> int:
        """A descriptor, to be mapped read-only."""
        assert self._range is None
        return self._allocation.lend(writable=False)

    def close(self) -> None:
        """Stop holding it."""
        if self._range is not None:
            self.seal()
        self._allocation.close()


class CudaFilling:
    """A few pinned buffers, each with a stream: reading and copying overlap.

    A buffer whose copy was started comes round again; whoever takes it waits for that copy.
    """

    def __init__(
        self,
        memory: CudaMemory,
        buffers: int = STAGING_BUFFERS,
        nbytes: int = STAGING_BUFFER_BYTES,
    ) -> None:
        self._memory, self._nbytes = memory, nbytes
        self._driver = memory.driver
        self._ring: queue.SimpleQueue[_Buffer] = queue.SimpleQueue()
        self._lent: dict[int, _Buffer] = {}
        self._lock = threading.Lock()
        self._buffers: list[_Buffer] = []
        try:
            for _ in range(buffers):
                self._buffers.append(_Buffer(self._driver.pin(nbytes), self._driver.stream()))
                memory.staging.add(nbytes)
                self._ring.put(self._buffers[-1])
        except BaseException:
            self.close()
            raise

    def take(self, segment: Segment, offset: int, nbytes: int) -> memoryview:
        """The buffer that has waited longest, once its copy is done."""
        if nbytes > self._nbytes:
            raise ValueError(f"{nbytes} bytes for a buffer of {self._nbytes}")
        buffer = self._ring.get()
        self._driver.synchronize(buffer.stream)
        view = buffer.view(nbytes)
        with self._lock:
            self._lent[_address(view)] = buffer
        return view

    def put(self, segment: Segment, offset: int, buffer: memoryview) -> None:
        """Start the copy."""
        assert isinstance(segment, CudaSegment)
        source = self._back(buffer)
        try:
            address = segment.address(offset, buffer.nbytes)
            self._driver.copy(address, source.address, buffer.nbytes, source.stream)
        finally:
            self._ring.put(source)

    def drop(self, buffer: memoryview) -> None:
        """It can be taken again."""
        self._ring.put(self._back(buffer))

    def finish(self) -> None:
        """Wait for every copy."""
        for buffer in self._buffers:
            self._driver.synchronize(buffer.stream)

    def close(self) -> None:
        """Free the buffers, once the GPU has done with them."""
        self.finish()
        while self._buffers:
            buffer = self._buffers.pop()
            self._driver.destroy_stream(buffer.stream)
            self._driver.unpin(buffer.address)
            self._memory.staging.add(-self._nbytes)

    def _back(self, view: memoryview) -> _Buffer:
        with self._lock:
            return self._lent.pop(_address(view))


class _Buffer:
    def __init__(self, address: int, stream: int) -> None:
        self.address, self.stream = address, stream

    def view(self, nbytes: int) -> memoryview:
        return memoryview((ctypes.c_uint8 * nbytes).from_address(self.address)).cast("B")


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_uint8.from_buffer(view))
