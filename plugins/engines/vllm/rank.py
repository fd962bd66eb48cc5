"""One rank: vLLM's worker, and calls to it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]
from vllm.platforms import current_platform
from vllm.v1.outputs import AsyncModelRunnerOutput
from vllm.v1.worker.worker_base import WorkerWrapperBase

from shuntserve_core.errors import UserError
from shuntserve_plugins.engines.vllm.configuration import build_configuration
from shuntserve_plugins.engines.vllm.engine import WorkerSpec
from shuntserve_plugins.engines.vllm.meeting import listen_on
from shuntserve_plugins.engines.vllm.payload import vocabulary
from shuntserve_plugins.engines.vllm.plain import read_plain

PREPARE = "prepare"
"""A call that is not vLLM's: join the others, and take the weights."""
STAND_BY, OWN = "stand_by", "own_kv_memory"
"""Methods of `StageWorker`: the last call before the engine stands by, and the first after."""
CALLS = frozenset(
    {
        PREPARE,
        "get_kv_cache_spec",
        "get_supported_kv_cache_layouts",
        "get_supported_tasks",
        "set_kv_cache_layout",
        "update_max_model_len",
        "determine_available_memory",
        "initialize_from_config",
        "compile_or_warm_up_model",
        STAND_BY,
        OWN,
        "execute_model",
        "sample_tokens",
    }
)
"""All that vLLM's engine core and we ask of ranks."""


class Rank:
    """Calls are made on one thread, in rank 0's order."""

    def __init__(self, spec: WorkerSpec, store: Store) -> None:
        self.config = build_configuration(spec)
        self._spec = spec
        self._worker = WorkerWrapperBase(rpc_rank=0, global_rank=spec.rank)
        self._store = store

    def run(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One of `CALLS`, a method of the worker.  Raises `NotImplementedError` for others."""
        if method not in CALLS:
            raise NotImplementedError(f"ranks are not asked to {method}")
        if method == PREPARE:
            return self._prepare(*args)
        result = getattr(self._worker, method)(*args, **kwargs)
        return result.get_output() if isinstance(result, AsyncModelRunnerOutput) else result

    def _prepare(self, name: str, words: str) -> None:
        """Join the other ranks, and take the weights.

        What ranks share on a machine is known by `name`, which no other engine has.  Raises
        `UserError` where rank 0 has other `words` for steps than this rank.
        """
        launch, rank = self._spec.launch, self._spec.rank
        if words != vocabulary():
            raise UserError(
                f"{launch.ranks[rank].node} has another vLLM than {launch.ranks[0].node}",
                where="vLLM engine",
                remedy="install the same version of vLLM and of shuntserve on all nodes",
            )
        read_plain()
        listen_on(launch.ranks[rank].host)
        if not current_platform.is_cpu():
            # Before any group: NCCL takes the current GPU for a rank's, and opens a context there.
            torch.accelerator.set_device_index(launch.ranks[rank].gpu)
        dist.init_process_group(  # vLLM finds it initialised
            current_platform.dist_backend,
            store=self._store,
            rank=rank,
            world_size=len(launch.ranks),
        )
        self._worker.init_worker(
            [
                {
                    "vllm_config": self.config,
                    "local_rank": launch.ranks[rank].gpu,
                    "rank": rank,
                    "distributed_init_method": f"met:{name}",
                    "is_driver_worker": launch.ranks[rank].tp_rank == 0,
                    "spec": self._spec,
                }
            ]
        )
        self._worker.init_device()
        self._worker.load_model()
