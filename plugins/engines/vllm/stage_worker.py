"""vLLM's worker, as a rank of a stage."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed import get_pp_group
from vllm.distributed.parallel_state import init_distributed_environment
from vllm.platforms import current_platform
from vllm.utils.mem_utils import MemorySnapshot

from shuntserve_core.interfaces.engine import EngineLaunch
from shuntserve_plugins.engines.vllm.engine import WorkerSpec, shares_memory
from shuntserve_plugins.engines.vllm.groups import build_groups, unname_shared_memory
from shuntserve_plugins.engines.vllm.lending import KvMemory, LentMemory, Taken
from shuntserve_plugins.engines.vllm.resumption import ResumableRequests
from shuntserve_plugins.engines.vllm.room import Room, utilization
from shuntserve_plugins.engines.vllm.sampling import seed_sampler

if TYPE_CHECKING or current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Base
else:
    from vllm.v1.worker.gpu_worker import Worker as Base

log = logging.getLogger(__name__)


def ragged(launch: EngineLaunch) -> bool:
    """Whether vLLM's own groups will not do: degrees differ, or its CPU pipeline would need memory
    shared between hosts."""
    degrees, hosts = set(launch.tensor_parallel), {place.host for place in launch.ranks}
    across = len(launch.layers) > 1 and len(hosts) > 1 and current_platform.is_cpu()
    return len(degrees) > 1 or bool(across)


class StageWorker(Base):
    """A rank whose stage has its own tensor-parallel degree, and whose memory is the store's."""

    def __init__(self, *args: Any, spec: WorkerSpec, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        launch, place = spec.launch, spec.launch.ranks[spec.rank]
        self._spec = spec
        self._ragged = ragged(launch)
        planned = launch.working_bytes[place.stage] if launch.working_bytes else 0
        self._room = Room(f"{place.node}, GPU {place.gpu}", planned)
        self._working_bytes = 0
        """What the largest step was measured to take beside weights and KV memory; 0: unknown."""
        # vLLM finds a rank's layers by its place in a full grid; this is its place in the one that
        # would have its stage's degree everywhere.
        degree = launch.tensor_parallel[place.stage]
        self.parallel_config.rank = place.stage * degree + place.tp_rank

    def init_device(self) -> None:
        """Join the other ranks.  Raises `UserError` where the GPU has no room for an engine."""
        if not current_platform.is_cpu():
            total = current_platform.get_device_total_memory(self.local_rank)
            self.cache_config.gpu_memory_utilization = utilization(self._room.planned, total)
        if self._ragged:
            self._join()
        try:
            super().init_device()
        except ValueError as error:
            if "Free memory" not in str(error):
                raise
            free, _ = torch.accelerator.get_memory_info(self.local_rank)
            raise self._room.refuse_start(free) from error
        unname_shared_memory()
        kv_bytes, device = self._spec.launch.kv_bytes_on(self._spec.rank), str(self.device)
        self._kv = KvMemory(self._spec.launch.ranks[self._spec.rank].store_socket, kv_bytes, device)
        self.model_runner.requests = ResumableRequests()
        seed_sampler(self.model_runner)

    def _join(self) -> None:
        """Make the groups that vLLM will then find made."""
        method = self.distributed_init_method
        if current_platform.is_cpu():
            os.environ["VLLM_DIST_IDENT"] = method.rpartition(":")[2]
        init_distributed_environment(
            len(self._spec.launch.ranks),
            self.rank,
            method,
            self.local_rank,
            current_platform.dist_backend,
        )
        build_groups(self._spec.launch.tensor_parallel, shared_memory=shares_memory(self._spec))

    def determine_available_memory(self) -> int:
        """What the engine may own, which was planned.

        On a GPU the largest step is computed once, on the lent weights, which needs no KV memory:
        what it takes is kept for later steps, and compared with the plan.  Raises `UserError` where
        it does not fit.
        """
        launch = self._spec.launch
        kv_bytes = launch.kv_bytes_on(self._spec.rank)
        if current_platform.is_cpu():
            if not self._spec.options.enforce_eager:
                super().determine_available_memory()  # compiles
            return kv_bytes
        before = MemorySnapshot(device=self.device)
        torch.accelerator.reset_peak_memory_stats(self.device)
        try:
            super().determine_available_memory()  # profiles, and compiles where that is wanted
        except torch.OutOfMemoryError as error:
            raise self._room.refuse_step(str(error).partition("\n")[0]) from error
        after = MemorySnapshot(device=self.device)
        self._working_bytes = after.torch_peak - before.torch_allocated
        log.info(
            "the largest step took %d bytes; the plan leaves %d",
            self._working_bytes,
            self._room.planned,
        )
        warning = self._room.judge(self._working_bytes, after.free_memory, self._kv.to_come)
        if warning:
            log.warning("%s", warning)
        return kv_bytes

    def _maybe_get_memory_pool_context(self, tag: str) -> AbstractContextManager[Any]:
        if tag != "kv_cache":
            return super()._maybe_get_memory_pool_context(tag)
        return LentMemory(self._kv.memory)

    def compile_or_warm_up_model(self) -> Any:
        """Also make the buffer for hidden states, which vLLM's CPU worker forgets in eager mode."""
        runner = self.model_runner
        if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.dtype, device=runner.device
            )
        return super().compile_or_warm_up_model()

    def stand_by(self) -> dict[str, Any]:
        """All is done that can be done without KV memory; what there is to tell of it."""
        lent = self.model_runner.model.shuntserve_lent
        report = {"weights": {"lent": lent.lent, "copied": lent.copied}}
        return {**report, "working_bytes": self._working_bytes}

    def own_kv_memory(self) -> Taken:
        """Take the KV memory over, once the engine before has given it back."""
        if not current_platform.is_cpu():
            torch.accelerator.synchronize()  # nothing may use the addresses while they change
        return self._kv.own(self._spec.launch.engine_id)
