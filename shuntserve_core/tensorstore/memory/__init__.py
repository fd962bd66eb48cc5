"""Memory that other processes can map: physical memory, addresses, and descriptors between them.

* `interface`: what there is to it, on a host and on a GPU
* `host`: files in memory; `addresses`: where they are mapped
* `cuda`: virtual memory management of CUDA; `driver`: the calls that it makes
"""

from shuntserve_core.errors import UserError
from shuntserve_core.tensorstore.memory.host import HostMemory
from shuntserve_core.tensorstore.memory.interface import (
    AddressRange,
    Allocation,
    Filling,
    Memory,
    OutOfMemory,
    Room,
    Segment,
)

__all__ = [
    "AddressRange",
    "Allocation",
    "Filling",
    "HostMemory",
    "Memory",
    "OutOfMemory",
    "Room",
    "Segment",
    "open_memory",
]


def open_memory(device: str) -> Memory:
    """Memory of `cpu` or `cuda:N`.  Raises `UserError` if there is no such device here."""
    if device == "cpu":
        return HostMemory()
    kind, _, number = device.partition(":")
    if kind == "cuda" and (number.isdecimal() or not number):
        from shuntserve_core.tensorstore.memory.cuda import CudaMemory
        from shuntserve_core.tensorstore.memory.driver import CudaBindings

        return CudaMemory(CudaBindings(int(number or 0)))
    raise UserError(f"no device {device!r}", where="tensor store", remedy="cpu or cuda:N")
