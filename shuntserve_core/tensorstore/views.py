"""The store's memory as engines see it: tensors over weights, and an address for keys and values.

An engine needs to know no more than this of where memory comes from.  It imports torch; nothing
else of the tensor store does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from shuntserve_core.tensorstore.client import Attachment, KvLease
from shuntserve_core.tensorstore.memory import AddressRange, Allocation, Memory, open_memory
from shuntserve_core.tensorstore.memory.interface import rounded


def shard_tensors(attachment: Attachment, memory: Memory | None = None) -> dict[str, Tensor]:
    """Every tensor of an attachment by name, without a copy; once for each attachment.

    The memory is mapped read-only: writing to a tensor ends the process, or fails on the GPU.  Of
    a layer's tensors the parts that engines fuse (`q`, `k`, `v`; `gate`, `up`) lie one right behind
    the other in the same storage.
    """
    memory = memory or open_memory(attachment.device)
    segments = []
    for descriptor in attachment.segments:
        addresses = memory.reserve(descriptor.nbytes)
        allocation = memory.adopt(descriptor.take(), descriptor.nbytes)
        try:
            addresses.back([allocation], writable=False)
        finally:
            allocation.close()  # the mapping keeps it
        segments.append(_bytes_at(addresses, descriptor.nbytes, memory.tensor_device))
    tensors = {}
    for name, view in attachment.tensors.items():
        data = segments[view.segment][view.offset : view.offset + view.nbytes]
        tensors[name] = data.view(getattr(torch, view.dtype)).view(view.shape)
    return tensors


class KvRange:
    """`nbytes` of addresses on `device` ("cpu" or "cuda:N"), reserved once in this process.

    Its memory changes and its address does not, so that what was set up or captured (CUDA graphs)
    on scratch memory goes on with leased memory.  Changing it waits for the device first.
    """

    def __init__(self, nbytes: int, device: str = "cpu", memory: Memory | None = None) -> None:
        self._memory = memory = memory or open_memory(device)
        self.nbytes = nbytes
        self._range = memory.reserve(rounded(nbytes, memory.kv_chunk_bytes))
        self._map_scratch(1)  # torch asks the driver whose address it is
        self.tensor = _bytes_at(self._range, nbytes, memory.tensor_device)
        """The whole range, uint8.  It has memory after `practise` or `own`, until `close`."""

    def practise(self) -> None:
        """Back the range with scratch memory of our own: one chunk of zeros, again and again.

        What is written to one place shows up at others; for warm-up and graph capture only.
        """
        self._map_scratch(self._range.nbytes // self._memory.kv_chunk_bytes)

    def own(self, lease: KvLease) -> None:
        """Put leased memory (zeros) in the place of what was there.

        Raises ValueError for a lease that is too small, or of another device.
        """
        memory = self._memory
        if lease.nbytes < self._range.nbytes or lease.chunk_bytes != memory.kv_chunk_bytes:
            raise ValueError(f"a lease of {lease.nbytes} bytes for a range of {self.nbytes}")
        if lease.device != memory.device:
            raise ValueError(f"a lease of {lease.device} for a range of {memory.device}")
        self._range.back(self._chunks(lease), writable=True)

    def close(self) -> None:
        """Take the memory away: the tensor must not be touched any more.

        Do it before a lease is released.  The addresses stay reserved while there is a tensor.
        """
        self._range.clear()

    def _map_scratch(self, times: int) -> None:
        scratch = self._memory.allocate(self._memory.kv_chunk_bytes)
        try:
            self._memory.zero([scratch])
            self._range.back([scratch] * times, writable=True)
        finally:
            scratch.close()

    def _chunks(self, lease: KvLease) -> Iterator[Allocation]:
        """As many of its chunks as the range holds."""
        wanted = self._range.nbytes // lease.chunk_bytes
        for _, descriptor in zip(range(wanted), lease.descriptors(), strict=False):
            allocation = self._memory.adopt(descriptor.take(), descriptor.nbytes)
            try:
                yield allocation
            finally:
                allocation.close()


def _bytes_at(addresses: AddressRange, nbytes: int, device: str) -> Tensor:
    """Mapped memory as a tensor that keeps the addresses reserved while it lives."""
    if device == "cpu":
        buffer = (ctypes.c_uint8 * nbytes).from_address(addresses.address)
        buffer.addresses = addresses  # type: ignore[attr-defined]
        return torch.frombuffer(buffer, dtype=torch.uint8)
    return torch.as_tensor(_OnGpu(addresses, nbytes), device=device)


class _OnGpu:
    """What torch takes for memory on a GPU; it refers to this object as long as to the memory."""

    def __init__(self, addresses: AddressRange, nbytes: int) -> None:
        self._addresses = addresses
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (addresses.address, False),  # torch refuses read-only memory
            "version": 3,
        }
