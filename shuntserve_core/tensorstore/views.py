"""The store's memory as engines see it: tensors over weights, and an address for keys and values.

An engine needs to know no more than this of where memory comes from.  It imports torch; nothing
else of the tensor store does.
"""

from __future__ import annotations

import ctypes
import os
import warnings

import torch
from torch import Tensor

from shuntserve_core.errors import UserError
from shuntserve_core.tensorstore.client import Attachment, KvLease
from shuntserve_core.tensorstore.memory.addresses import HostRange

SCRATCH_BYTES = 2 << 20


def shard_tensors(attachment: Attachment) -> dict[str, Tensor]:
    """Every tensor of an attachment by name, without a copy.

    The memory is mapped read-only: writing to a tensor ends the process.
    """
    tensors = {}
    with warnings.catch_warnings():
        # torch knows no read-only tensors, and says so.  The kernel does: a write would be a fault.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        for name, view in attachment.tensors.items():
            dtype = getattr(torch, view.dtype)
            tensors[name] = torch.frombuffer(attachment.data(name), dtype=dtype).view(view.shape)
    return tensors


class KvRange:
    """`nbytes` of addresses on `device` ("cpu" or "cuda:N"), reserved once in this process.

    Its memory changes and its address does not, so that what was set up or captured (CUDA graphs)
    on scratch memory goes on with leased memory.
    """

    def __init__(self, nbytes: int, device: str = "cpu") -> None:
        if device != "cpu":
            raise UserError("KV memory of a GPU cannot be mapped yet", where=device)
        self.nbytes = nbytes
        self._range = HostRange(nbytes)
        self.tensor = _bytes_at(self._range, nbytes)
        """The whole range, uint8.  It has memory after `practise` or `own`, until `close`."""

    def practise(self) -> None:
        """Back the range with scratch memory of our own: one piece, seen again and again.

        What is written to one place shows up at others; for warm-up and graph capture only.
        """
        piece = min(SCRATCH_BYTES, self._range.nbytes)
        fd = os.memfd_create("shuntserve-scratch", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, piece)
            for offset in range(0, self._range.nbytes, piece):
                part = min(piece, self._range.nbytes - offset)
                self._range.map(offset, fd, part, writable=True)
        finally:
            os.close(fd)

    def own(self, lease: KvLease) -> None:
        """Put leased memory (zeros) in the place of what was there.

        Raises ValueError for a lease smaller than the range.
        """
        if lease.nbytes < self.nbytes:
            raise ValueError(f"a lease of {lease.nbytes} bytes for a range of {self.nbytes}")
        lease.map_into(self._range)

    def close(self) -> None:
        """Take the memory away: the tensor must not be touched any more.

        Do it before a lease is released.
        """
        self._range.unmap()


def _bytes_at(range_: HostRange, nbytes: int) -> Tensor:
    buffer = (ctypes.c_uint8 * nbytes).from_address(range_.address)
    buffer.range = range_  # type: ignore[attr-defined]  # the addresses live as long as the tensor
    return torch.frombuffer(buffer, dtype=torch.uint8)
