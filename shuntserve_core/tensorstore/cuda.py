"""The store's memory on a GPU, lent through CUDA IPC.

Not run by our tests, which have no GPU; everything else of the store is independent of it.  CUDA
IPC knows no read-only memory: here engines only promise not to write to weights.
"""

from __future__ import annotations

from typing import Any

import msgpack
import torch

from shuntserve_core.errors import UserError
from shuntserve_core.tensorstore.memory import Loan


class CudaMemory:
    """Memory of one GPU, `cuda:N`.  Raises `UserError` if there is no such GPU."""

    def __init__(self, device: str) -> None:
        try:
            self._device = torch.device(device)
            torch.cuda.init()  # type: ignore[no-untyped-call]
            torch.cuda.get_device_properties(self._device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"no such GPU: {error}", where=f"--device {device}") from error
        self.device = device

    def segment(self, name: str, nbytes: int) -> CudaSegment:
        """New memory for weights."""
        return CudaSegment(self._device, nbytes)

    def region(self) -> CudaRegion:
        """New KV memory, empty."""
        return CudaRegion(self._device)


class CudaSegment:
    """Weights on the GPU; each tensor passes through pinned host memory once."""

    def __init__(self, device: torch.device, nbytes: int) -> None:
        self.nbytes = nbytes
        self._bytes = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self._staged: dict[int, torch.Tensor] = {}

    def buffer(self, offset: int, nbytes: int) -> memoryview:
        """Pinned host memory for one tensor."""
        self._staged[offset] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        return memoryview(self._staged[offset].numpy().data)

    def commit(self, offset: int, nbytes: int) -> None:
        """Copy the tensor to the GPU."""
        self._bytes[offset : offset + nbytes].copy_(self._staged.pop(offset))

    def seal(self) -> None:
        """Wait for the copies."""
        torch.cuda.synchronize(self._bytes.device)

    def lend(self) -> Loan:
        """An IPC handle for `open_loan`."""
        return Loan(handle=_handle(self._bytes))

    def close(self) -> None:
        """Let go of it; the memory is free once every engine has done so too."""
        del self._bytes


class CudaRegion:
    """KV memory on the GPU.

    It cannot grow once lent, so start a store on a GPU with `--kv-bytes`.
    """

    def __init__(self, device: torch.device) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8, device=device)

    def resize(self, nbytes: int) -> None:
        """Allocate."""
        if self._bytes.numel():
            raise UserError(
                "KV memory on a GPU cannot grow", where="tensor store", remedy="set --kv-bytes"
            )
        self._bytes = torch.empty(nbytes, dtype=torch.uint8, device=self._bytes.device)

    def lend(self, *, writable: bool) -> Loan:
        """An IPC handle of the whole region; CUDA cannot lend it read-only."""
        return Loan(handle=_handle(self._bytes))

    def discard(self, offset: int, nbytes: int) -> None:
        """Zero it, so that the next owner does not see what was there."""
        self._bytes[offset : offset + nbytes].zero_()
        torch.cuda.synchronize(self._bytes.device)


def open_loan(handle: bytes) -> torch.Tensor:
    """The lent memory as a tensor of bytes on the same GPU, in the process of an engine."""
    storage = torch.UntypedStorage._new_shared_cuda(*msgpack.unpackb(handle))
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _handle(tensor: torch.Tensor) -> bytes:
    storage: Any = tensor.untyped_storage()
    share = storage._share_cuda_()
    packed: bytes = msgpack.packb(share)
    return packed
