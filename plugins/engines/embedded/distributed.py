"""Ranks as processes: torch.distributed over gloo."""

from __future__ import annotations

import ipaddress
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from shuntserve_core.interfaces.engine import EngineLaunch
from shuntserve_plugins.engines.embedded.group import Alone, Group

_RENDEZVOUS = timedelta(seconds=120)


def open_store(launch: EngineLaunch, port: int = 0) -> TCPStore:
    """The meeting point of the ranks: rank 0 opens it (port 0), the others connect to it."""
    host = launch.ranks[0].host
    opens = not port
    return TCPStore(host, port, is_master=opens, wait_for_workers=False, timeout=_RENDEZVOUS)


def join(launch: EngineLaunch, rank: int, store: TCPStore) -> tuple[Group, Pipe]:
    """Meet all ranks of the engine; returns this rank's stage and its neighbours.

    Every rank of the engine must call it.
    """
    if _is_loopback(launch.ranks[rank].host):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=len(launch.ranks), timeout=_RENDEZVOUS
    )
    stages = [
        [index for index, one in enumerate(launch.ranks) if one.stage == stage]
        for stage in range(len(launch.layers))
    ]
    ours: Group = Alone()
    for ranks in stages:
        if len(ranks) > 1:  # every rank takes part in making every group
            group = dist.new_group(ranks)
            if rank in ranks:
                ours = Collective(group, len(ranks), ranks.index(rank))
    return ours, Pipe(stages, launch.ranks[rank].stage, ours.rank, launch.model.hidden)


class Collective:
    """The ranks of a stage."""

    def __init__(self, group: dist.ProcessGroup, size: int, rank: int) -> None:
        self._group, self.size, self.rank = group, size, rank

    def gather(self, part: Tensor) -> Tensor:
        """Every rank's tensor of this shape, stacked in the order of ranks."""
        together = part.new_empty(self.size, *part.shape)
        dist.all_gather(list(together.unbind()), part.contiguous(), group=self._group)
        return together


class Pipe:
    """The neighbouring stages.  Every rank of a stage has the same hidden states, so that each
    rank of the next one can have them from any."""

    def __init__(self, stages: list[list[int]], stage: int, rank: int, hidden: int) -> None:
        self._hidden = hidden
        self._source = -1
        self._targets: list[int] = []
        if stage > 0:
            before = stages[stage - 1]
            self._source = before[rank % len(before)]
        if stage + 1 < len(stages):
            size = len(stages[stage])
            self._targets = [r for i, r in enumerate(stages[stage + 1]) if i % size == rank]

    def receive(self, rows: int) -> Tensor:
        """Hidden states of the stage before: (rows, hidden)."""
        hidden = torch.empty(rows, self._hidden)
        dist.recv(hidden, self._source)
        return hidden

    def send(self, hidden: Tensor) -> None:
        """Pass hidden states on to the stage after."""
        for target in self._targets:
            dist.send(hidden, target)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
