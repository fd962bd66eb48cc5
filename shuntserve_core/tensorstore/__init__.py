"""The tensor store: one process for each GPU rank that owns its weights and KV memory.

It loads a shard once, lends it read-only to any number of engines, and hands KV memory from one
engine to the next.  It outlives engines.

* `spec`: what can be asked for and what comes back
* `wire`: messages and file descriptors over a Unix socket
* `memory`: memory that other processes can map; `cuda` the same on a GPU
* `shards`: which tensors are held; `leases`: who owns which bytes of KV memory
* `server`: the process; `client`: for engines and node agents
"""

from shuntserve_core.tensorstore.client import Attachment, KvLease, StoreClient
from shuntserve_core.tensorstore.spec import LoadReport, ShardSpec, StoreStats, TensorView

__all__ = [
    "Attachment",
    "KvLease",
    "LoadReport",
    "ShardSpec",
    "StoreClient",
    "StoreStats",
    "TensorView",
]
