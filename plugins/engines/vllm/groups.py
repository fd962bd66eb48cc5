"""Who talks to whom when stages have different tensor-parallel degrees.

vLLM numbers its ranks as a grid of stages and degrees, with a pipeline group for each column.  In
a ragged grid there are no columns: here each rank has a pipeline "group" of one rank a stage (its
own in its stage), so that what vLLM asks of it (first, last, how many, which am I) is answered as
ever, and hidden states travel between whole stages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from vllm.distributed import parallel_state
from vllm.distributed.parallel_state import GroupCoordinator

from shuntserve_plugins.engines.vllm.words import Described, checked_size, packed, unpacked

Ranks = list[list[int]]
"""Global ranks, stage by stage."""
_SHARED = "/dev/shm/"  # noqa: S108 - where shm_open puts it
_CPU_GROUP = "-cpushm_"
"""In the names of memory that vLLM's ranks share on a CPU."""


def stages_of(degrees: Sequence[int]) -> Ranks:
    """Global ranks of each stage."""
    starts = [sum(degrees[:stage]) for stage in range(len(degrees))]
    return [list(range(s, s + d)) for s, d in zip(starts, degrees, strict=True)]


def columns_of(stages: Ranks) -> Ranks:
    """Pipelines of one rank a stage that have every rank among them.

    The last of a narrow stage is in several: any of them has it in the same place.
    """
    width = max(len(ranks) for ranks in stages)
    return [[ranks[min(row, len(ranks) - 1)] for ranks in stages] for row in range(width)]


def build_groups(degrees: Sequence[int], *, shared_memory: bool = True) -> None:
    """Do for a ragged grid what `initialize_model_parallel` does for a full one.

    All ranks must call it, after `init_distributed_environment` and before vLLM would make groups.
    Without `shared_memory` the ranks of a stage on a CPU talk through gloo.
    """
    world = parallel_state.get_world_group()
    backend = dist.get_backend(world.device_group)
    stages = stages_of(degrees)
    singles = [[rank] for rank in range(world.world_size)]

    def group(ranks: Ranks, name: str) -> GroupCoordinator:
        return GroupCoordinator(ranks, world.local_rank, backend, True, group_name=name)

    # On a CPU vLLM shares memory in groups that are called so.
    tensor_parallel = "tp" if shared_memory else "stage"
    parallel_state._TP = parallel_state._ETP = group(stages, tensor_parallel)
    parallel_state._ENGRAM_DP = None
    parallel_state._DCP = group(singles, "dcp")
    parallel_state._PCP = group(singles, "pcp")
    parallel_state._DP = group(singles, "dp")
    parallel_state._PP = StagesGroup(stages, world.local_rank, backend)


def unname_shared_memory() -> None:
    """Take away the names of the memory that this rank shares with others on a CPU.

    All of a group have it by the time that the group is made.  vLLM would keep a name until its
    process ends in good order; left behind by one that is killed, it holds its memory for ever, and
    keeps an engine that is given the same port from starting.
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        _, mapped, name = line.partition(_SHARED)
        if mapped and _CPU_GROUP in name:
            Path(_SHARED + name).unlink(missing_ok=True)


class StagesGroup(GroupCoordinator):
    """The pipeline as one rank sees it.

    Receiver j of n takes part j of each tensor from one sender of the stage before (which all have
    the same), and gathers the whole inside its own stage: every byte crosses between nodes once.
    """

    def __init__(self, stages: Ranks, local_rank: int, backend: str) -> None:
        super().__init__(columns_of(stages), local_rank, backend, False, group_name="pp")
        self.stages = stages
        self.stage = self.rank_in_group
        # A communicator for each pair of neighbours: pairs do not wait for one another.
        self._borders = [
            (dist.new_group(a + b, backend=backend), dist.new_group(a + b, backend="gloo"))
            for a, b in pairwise(stages)
        ]
        self._sent: deque[tuple[list[Any], list[Tensor]]] = deque()
        """Handles of metadata, and all that is being sent: it must live until then.

        The other handles are waited for by vLLM, and gloo's must not be waited for twice.
        """

    def isend_tensor_dict(
        self,
        tensor_dict: dict[str, Any],
        dst: int | None = None,
        all_gather_group: GroupCoordinator | None = None,
        all_gather_tensors: dict[str, bool] | None = None,
    ) -> list[Any]:
        """Send to the stage after; the first handle is the metadata's, as vLLM expects."""
        assert dst is None
        while len(self._sent) > self.world_size:  # more steps than are ever under way
            for handle in self._sent.popleft()[0]:
                handle.wait()
        tensors = [value for value in tensor_dict.values() if isinstance(value, Tensor)]
        device_group, cpu_group = self._borders[self.stage]
        words: list[Any] = []
        data: list[Any] = []
        kept: list[Tensor] = []
        described = packed([(key, _described(value)) for key, value in tensor_dict.items()])
        for receiver, part, parts in self._receivers():
            for message in (torch.tensor([described.numel()]), described):
                words.append(dist.isend(message, dst=receiver, group=cpu_group))
                kept.append(message)
            for tensor in tensors:
                piece = _part(tensor.contiguous(), part, parts)
                group = cpu_group if piece.is_cpu else device_group
                data.append(dist.isend(piece, dst=receiver, group=group))
                kept.append(piece)
        self._sent.append((words, kept))
        return [_Handles(words), *data]

    def irecv_tensor_dict(
        self,
        src: int | None = None,
        all_gather_group: GroupCoordinator | None = None,
        all_gather_tensors: dict[str, bool] | None = None,
    ) -> tuple[dict[str, Any] | None, list[Any], list[Callable[[], None]]]:
        """Receive from the stage before."""
        assert src is None
        sender, part, parts = self._sender()
        device_group, cpu_group = self._borders[self.stage - 1]
        received: dict[str, Any] = {}
        handles: list[Any] = []
        finishing: list[Callable[[], None]] = []
        for key, value in _receive_words(sender, cpu_group):
            if not isinstance(value, Described):
                received[key] = value
                continue
            device = value.device if value.device == "cpu" else self.device
            whole = torch.empty(value.size, dtype=value.dtype, device=device)
            piece = _part(whole, part, parts)
            group = cpu_group if piece.is_cpu else device_group
            handles.append(dist.irecv(piece, src=sender, group=group))
            received[key] = whole
            if piece.numel() < whole.numel():
                finishing.append(_gathering(received, key, piece, whole.shape))
        return received, handles, finishing

    def send_tensor_dict(self, *args: Any, **kwargs: Any) -> None:
        """Send, and wait until it is sent."""
        for handle in self.isend_tensor_dict(*args, **kwargs):
            handle.wait()

    def recv_tensor_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        """Receive, and wait until all is there."""
        received, handles, finishing = self.irecv_tensor_dict(*args, **kwargs)
        for handle in handles:
            handle.wait()
        for finish in finishing:
            finish()
        return received

    def destroy(self) -> None:
        """The process ends with its groups."""

    def _receivers(self) -> list[tuple[int, int, int]]:
        """(rank, part, parts) of those in the next stage that take from this rank."""
        ours, theirs = self.stages[self.stage], self.stages[self.stage + 1]
        return [
            (receiver, part, len(theirs))
            for part, receiver in enumerate(theirs)
            if ours[part * len(ours) // len(theirs)] == self.rank
        ]

    def _sender(self) -> tuple[int, int, int]:
        theirs, ours = self.stages[self.stage - 1], self.stages[self.stage]
        part = ours.index(self.rank)
        return theirs[part * len(theirs) // len(ours)], part, len(ours)


def _described(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return Described(value.device.type, value.dtype, value.size())


class _Handles:
    """Several sends as one."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def is_completed(self) -> bool:
        return all(handle.is_completed() for handle in self._handles)

    def wait(self) -> None:
        for handle in self._handles:
            handle.wait()


def _part(tensor: Tensor, part: int, parts: int) -> Tensor:
    """A receiver's part, flat; everything, where it does not divide."""
    flat = tensor.view(-1)
    return flat.view(parts, -1)[part] if parts > 1 and flat.numel() % parts == 0 else flat


def _gathering(
    received: dict[str, Any], key: str, piece: Tensor, shape: torch.Size
) -> Callable[[], None]:
    def finish() -> None:
        received[key] = parallel_state.get_tp_group().all_gather(piece, dim=0).view(shape)

    return finish


def _receive_words(sender: int, group: Any) -> Any:
    size = torch.empty(1, dtype=torch.long)
    dist.recv(size, src=sender, group=group)
    data = torch.empty(checked_size(int(size)), dtype=torch.uint8)
    dist.recv(data, src=sender, group=group)
    return unpacked(data)
