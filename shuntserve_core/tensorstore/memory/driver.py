"""The calls of the CUDA driver that the tensor store makes, and their way to the library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from shuntserve_core.errors import UserError

OUT_OF_MEMORY = 2
NOT_SUPPORTED = 801
INVALID_VALUE = 1
"""`CUresult`s that somebody here acts on."""


class CudaError(Exception):
    """A call of the driver failed."""

    def __init__(self, call: str, code: int, reason: str) -> None:
        super().__init__(f"{call}: {reason}")
        self.call, self.code = call, code


class Driver(Protocol):
    """One GPU.  Sizes and addresses are in bytes; every call may raise `CudaError`."""

    ordinal: int
    host_addressable: bool
    """Whether the processor may touch these addresses: only those of a driver that plays one."""
    granularity: int
    """`cuMemGetAllocationGranularity`, the minimum: 2 MiB on today's cards."""

    def create(self, nbytes: int) -> int:
        """Physical memory of the GPU that can be exported; returns its handle."""
        ...

    def release(self, handle: int) -> None:
        """Give a handle up; mappings and descriptors keep the memory."""
        ...

    def export(self, handle: int) -> int:
        """A new file descriptor for another process, to be closed by the caller."""
        ...

    def import_(self, descriptor: int) -> int:
        """A handle for what another process exported; the descriptor stays open."""
        ...

    def reserve(self, nbytes: int) -> int:
        """An address range without memory."""
        ...

    def free(self, address: int, nbytes: int) -> None:
        """Give a whole reserved range up; nothing may be mapped there."""
        ...

    def map(self, address: int, nbytes: int, offset: int, handle: int) -> None:
        """Map a whole allocation; `offset` must be 0.  It cannot be touched yet."""
        ...

    def unmap(self, address: int, nbytes: int) -> None:
        """Undo one `map`."""
        ...

    def set_access(self, address: int, nbytes: int, *, writable: bool) -> None:
        """Let the GPU read, or read and write, a range that is mapped throughout."""
        ...

    def zero(self, address: int, nbytes: int) -> None:
        """Fill with zeros, and wait for it."""
        ...

    def copy(self, address: int, source: int, nbytes: int, stream: int) -> None:
        """Start to copy from pinned host memory."""
        ...

    def pin(self, nbytes: int) -> int:
        """Pinned host memory; returns its address."""
        ...

    def unpin(self, address: int) -> None:
        """Free pinned memory."""
        ...

    def stream(self) -> int:
        """A new stream."""
        ...

    def destroy_stream(self, stream: int) -> None:
        """Give a stream up."""
        ...

    def synchronize(self, stream: int | None = None) -> None:
        """Wait for a stream, or for everything that this process has the GPU do."""
        ...

    def memory(self) -> tuple[int, int]:
        """Free and all bytes of the GPU: `cuMemGetInfo`."""
        ...


class CudaBindings:
    """The driver of this machine, through `cuda-bindings`.

    Works in the GPU's primary context, which is the one that torch uses.  Raises `UserError` if
    the package, the driver or the GPU is not there, or cannot do what is needed.
    """

    host_addressable = False

    def __init__(self, ordinal: int) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise UserError(
                f"no cuda-bindings: {error}",
                where=f"cuda:{ordinal}",
                remedy="install the extra `cuda`",
            ) from error
        self._cuda: Any = driver
        self.ordinal = ordinal
        try:
            self._call("cuInit", 0)
            device = self._call("cuDeviceGet", ordinal)
            self._require(device)
            self._context = self._call("cuDevicePrimaryCtxRetain", device)
            self._properties = self._describe()
            flag = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
            self.granularity: int = self._call(
                "cuMemGetAllocationGranularity", self._properties, flag
            )
        except (CudaError, RuntimeError) as error:  # RuntimeError: no libcuda
            raise UserError(f"no such GPU: {error}", where=f"cuda:{ordinal}") from error
        with self._current():
            flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            self._zeroing: Any = self._call("cuStreamCreate", flags)

    def create(self, nbytes: int) -> int:
        """`cuMemCreate`."""
        return int(self._call("cuMemCreate", nbytes, self._properties, 0))

    def release(self, handle: int) -> None:
        """`cuMemRelease`."""
        self._call("cuMemRelease", handle)

    def export(self, handle: int) -> int:
        """`cuMemExportToShareableHandle`."""
        return int(self._call("cuMemExportToShareableHandle", handle, self._descriptors, 0))

    def import_(self, descriptor: int) -> int:
        """`cuMemImportFromShareableHandle`."""
        return int(self._call("cuMemImportFromShareableHandle", descriptor, self._descriptors))

    def reserve(self, nbytes: int) -> int:
        """`cuMemAddressReserve`."""
        return int(self._call("cuMemAddressReserve", nbytes, 0, 0, 0))

    def free(self, address: int, nbytes: int) -> None:
        """`cuMemAddressFree`."""
        self._call("cuMemAddressFree", address, nbytes)

    def map(self, address: int, nbytes: int, offset: int, handle: int) -> None:
        """`cuMemMap`."""
        self._call("cuMemMap", address, nbytes, offset, handle, 0)

    def unmap(self, address: int, nbytes: int) -> None:
        """`cuMemUnmap`."""
        self._call("cuMemUnmap", address, nbytes)

    def set_access(self, address: int, nbytes: int, *, writable: bool) -> None:
        """`cuMemSetAccess`, for this GPU alone."""
        flags = self._cuda.CUmemAccess_flags
        access = self._cuda.CUmemAccessDesc()
        access.location = self._properties.location
        access.flags = (
            flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
            if writable
            else flags.CU_MEM_ACCESS_FLAGS_PROT_READ
        )
        self._call("cuMemSetAccess", address, nbytes, [access], 1)

    def zero(self, address: int, nbytes: int) -> None:
        """`cuMemsetD8Async`, and wait."""
        with self._current():
            self._call("cuMemsetD8Async", address, 0, nbytes, self._zeroing)
            self._call("cuStreamSynchronize", self._zeroing)

    def copy(self, address: int, source: int, nbytes: int, stream: int) -> None:
        """`cuMemcpyHtoDAsync`."""
        with self._current():
            self._call("cuMemcpyHtoDAsync", address, source, nbytes, stream)

    def pin(self, nbytes: int) -> int:
        """`cuMemHostAlloc`."""
        with self._current():
            return int(self._call("cuMemHostAlloc", nbytes, 0))

    def unpin(self, address: int) -> None:
        """`cuMemFreeHost`."""
        with self._current():
            self._call("cuMemFreeHost", address)

    def stream(self) -> int:
        """`cuStreamCreate`, one that waits for no other."""
        with self._current():
            flags = self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING
            return int(self._call("cuStreamCreate", flags))

    def destroy_stream(self, stream: int) -> None:
        """`cuStreamDestroy`."""
        with self._current():
            self._call("cuStreamDestroy", stream)

    def synchronize(self, stream: int | None = None) -> None:
        """`cuStreamSynchronize`, `cuCtxSynchronize`."""
        with self._current():
            if stream is None:
                self._call("cuCtxSynchronize")
            else:
                self._call("cuStreamSynchronize", stream)

    def memory(self) -> tuple[int, int]:
        """`cuMemGetInfo`."""
        with self._current():
            free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Make the context this thread's, and leave the thread as it was: torch has its own say."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def _describe(self) -> Any:
        cuda = self._cuda
        properties = cuda.CUmemAllocationProp()
        properties.type = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.requestedHandleTypes = self._descriptors
        properties.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = self.ordinal
        return properties

    @property
    def _descriptors(self) -> Any:
        return self._cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR

    def _require(self, device: Any) -> None:
        attributes = self._cuda.CUdevice_attribute
        for attribute in (
            attributes.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
            attributes.CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
        ):
            if not self._call("cuDeviceGetAttribute", attribute, device):
                raise UserError(
                    f"the GPU or its driver lacks {attribute.name}", where=f"cuda:{self.ordinal}"
                )

    def _call(self, name: str, *arguments: Any) -> Any:
        """Its result, or its results as a tuple, without the code of success."""
        code, *results = getattr(self._cuda, name)(*arguments)
        if code:
            _, text = self._cuda.cuGetErrorString(code)
            reason = text.decode() if isinstance(text, bytes) else str(code)
            raise CudaError(name, int(code), f"{reason} ({int(code)})")
        return results[0] if len(results) == 1 else tuple(results)
