"""What a rank's process holds: weights and memory that the tensor store lends it."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping

import torch

from shuntserve_core.tensorstore import KvLease, StoreClient
from shuntserve_core.tensorstore.views import KvRange, shard_tensors
from shuntserve_plugins.engines.arrivals import PeerListener
from shuntserve_plugins.engines.embedded.arithmetic import settle
from shuntserve_plugins.engines.embedded.engine import WorkerSpec, kv_blocks, longest
from shuntserve_plugins.engines.embedded.geometry import read_geometry
from shuntserve_plugins.engines.embedded.mesh import Layout, meet
from shuntserve_plugins.engines.embedded.rank import Rank, cache_of
from shuntserve_plugins.engines.embedded.stage import Stage
from shuntserve_plugins.engines.embedded.weights import check_tensors


class RankProcess:
    """A rank with its weights, ready to own KV memory.

    Its peers connect to `listener`; `addresses` are where all ranks listen.
    """

    def __init__(
        self, spec: WorkerSpec, listener: PeerListener, addresses: Mapping[int, str]
    ) -> None:
        torch.set_num_threads(spec.threads)
        launch, place = spec.launch, spec.launch.ranks[spec.rank]
        device = torch.device(place.device)
        settle(device)
        geometry = read_geometry(launch.model_dir)
        self._spec = spec
        self._blocks = kv_blocks(launch, geometry)
        self._store = StoreClient(place.store_socket)
        self._kv = KvRange(launch.kv_bytes_on(spec.rank), place.device)
        self._lease: KvLease | None = None
        shard = launch.shard(spec.rank)
        self._store.load(shard)
        attachment = self._store.attach(shard)
        tensors = shard_tensors(attachment)
        check_tensors(tensors, geometry, f"{launch.weights}: {launch.weights_model}")
        layout = Layout(launch, spec.rank)
        group, pipe = meet(
            layout, listener, addresses, launch.link_token, launch.model.hidden, device
        )
        stage = Stage(
            geometry,
            tensors,
            range(*launch.layers[place.stage]),
            group,
            longest(launch, geometry),
        )
        self.rank = Rank(stage, pipe, samples=stage.last and group.rank == 0)
        self.rank.warm_up()
        _give_back_free_memory()

    def own_memory(self) -> float:
        """Lease KV memory; waits until the engine before has given it back.

        Returns the seconds that it then took to put it in its place.
        """
        leased = time.perf_counter()
        if self._lease is None:
            launch = self._spec.launch
            owner, nbytes = launch.engine_id, launch.kv_bytes_on(self._spec.rank)
            self._lease = self._store.kv_lease(owner, nbytes)
            leased = time.perf_counter()
            self._kv.own(self._lease)
            memory = self._kv.tensor[: nbytes // 4 * 4].view(torch.float32)
            self.rank.cache = cache_of(self.rank.stage, self._blocks, memory)
        return time.perf_counter() - leased


def _give_back_free_memory() -> None:
    """What setting up took and freed; libraries would keep it, beside another engine."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
