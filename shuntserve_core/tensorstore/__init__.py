"""The tensor store: one process for each GPU rank that owns its weights and KV memory.

It loads a shard once, lends it read-only to any number of engines, and hands KV memory from one
engine to the next.  It outlives engines.

* `spec`: what can be asked for and what comes back
* `wire`: messages and file descriptors over a Unix socket
* `memory`: memory that other processes can map, on a host or a GPU
* `shards`: which tensors are held
* `leases`: who owns which chunks of KV memory; `chunks`: the memory behind them
* `peer`: the process at the other end, and whether it has exited
* `server`: the process; `client`: for engines and node agents; `views`: tensors for engines
"""

from shuntserve_core.tensorstore.client import Attachment, Descriptor, KvLease, StoreClient
from shuntserve_core.tensorstore.spec import (
    LoadReport,
    MemoryStats,
    ShardSpec,
    StoreStats,
    TensorView,
)

__all__ = [
    "Attachment",
    "Descriptor",
    "KvLease",
    "LoadReport",
    "MemoryStats",
    "ShardSpec",
    "StoreClient",
    "StoreStats",
    "TensorView",
]
