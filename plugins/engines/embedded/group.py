"""What the ranks of a stage tell each other within a step."""

from __future__ import annotations

from typing import Protocol

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
