"""What can be asked of a tensor store, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen
from attrs.validators import ge

from shuntserve_core.errors import UserError


@frozen
class ShardSpec:
    """One rank's part of one stage of a model."""

    weights: str
    """URL of the weight store."""
    model: str
    """`base/model`, as in the weight store."""
    tp: int = field(validator=ge(1))
    """Tensor-parallel degree of the stage."""
    rank: int = field(validator=ge(0))
    """Rank within the stage."""
    start: int = field(validator=ge(0))
    """First layer."""
    stop: int = field(validator=ge(0))
    """End of the layers."""
    first: bool
    """Whether the embedding table belongs to it."""
    last: bool
    """Whether the final norm and the output projection belong to it."""

    @property
    def label(self) -> str:
        """What it is, for messages."""
        layers = f"layers {self.start}:{self.stop}"
        return f"{self.model} {layers}, rank {self.rank} of {self.tp}"


@frozen
class TensorView:
    """Where one tensor lies in the memory that was lent."""

    name: str
    """As the engine calls it."""
    dtype: str
    shape: tuple[int, ...]
    segment: int
    """Index of the segment in the same attachment."""
    offset: int
    """Bytes from the start of the segment."""
    nbytes: int


@frozen
class LoadReport:
    """What a load did."""

    tensors_read: int
    bytes_read: int
    """Read from the weight store, headers included."""
    tensors_kept: int
    """Held already, and so not read."""
    bytes_kept: int
    seconds: float


@frozen
class LeaseInfo:
    """Who owns, or waits for, how much KV memory."""

    owner: str
    nbytes: int
    chunks: int
    leaving: bool = False
    """Whether its owner's connection has ended, and nobody may have the memory yet."""


@frozen
class MemoryStats:
    """What a store holds of its device, to the byte."""

    weights: int
    """Allocated for weights, rounded up to what the device allocates by."""
    kv: int
    """Allocated for keys and values, whether leased or not."""
    allocated: int
    """Allocated in all: the sum of both."""
    staging: int
    """Pinned host memory, while weights are read; not of the device."""
    device_free: int | None
    """As the device's driver tells it: contexts and other processes count.  None for a host."""
    device_total: int | None


@frozen
class StoreStats:
    """How a store is, since it started."""

    pid: int
    device: str
    weight_bytes: int
    """Weights held, with what rounding up takes."""
    tensors: int
    bytes_read: Mapping[str, int]
    """Bytes read from each weight store, by its URL."""
    kv_capacity: int
    """Bytes that leases can have in all; 0 before the first one, where no limit was set."""
    leases: tuple[LeaseInfo, ...]
    waiting: tuple[LeaseInfo, ...]
    memory: MemoryStats
    rss: int
    """Resident memory of the process in bytes, shared memory included."""


class TensorStoreError(UserError):
    """The store refused, or cannot be reached."""


class KvUnavailable(TensorStoreError):
    """KV memory is owned by somebody else, and waiting was not asked for."""
