"""What ranks of a stage, and neighbouring stages, tell each other within a step."""

from __future__ import annotations

import threading
from typing import Protocol

import torch
from torch import Tensor


class Group(Protocol):
    """The ranks of one stage."""

    size: int
    rank: int

    def gather(self, part: Tensor) -> Tensor:
        """Every rank's tensor of this shape, stacked in the order of ranks."""
        ...


class Alone:
    """A stage of one rank."""

    size = 1
    rank = 0

    def gather(self, part: Tensor) -> Tensor:
        """The tensor itself."""
        return part[None]


class Threads:
    """Ranks that are threads of one process."""

    def __init__(self, size: int) -> None:
        self._parts: list[Tensor | None] = [None] * size
        self._barrier = threading.Barrier(size)
        self.members = [_Thread(self, rank, size) for rank in range(size)]

    def exchange(self, rank: int, part: Tensor) -> Tensor:
        """Meet the others."""
        self._parts[rank] = part
        self._barrier.wait()
        together = torch.stack([p for p in self._parts if p is not None])
        self._barrier.wait()
        return together


class _Thread:
    def __init__(self, threads: Threads, rank: int, size: int) -> None:
        self._threads, self.rank, self.size = threads, rank, size

    def gather(self, part: Tensor) -> Tensor:
        return self._threads.exchange(self.rank, part)
