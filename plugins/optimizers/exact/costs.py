"""What the estimator says of stages, as look-up tables over batch sizes.

A pipeline's batch is the limit of one of its stages, so only the values that `batch_limit` takes
can occur.  A *slot* is a stage kind in a position: number `position * kinds + kind`, with positions
first, middle, last, only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from attrs import define, field, frozen

from shuntserve_core.interfaces.estimator import BoundEstimator, Floats, Ints, Position
from shuntserve_core.types import StageKind

T = TypeVar("T")

FIRST, MIDDLE, LAST, ONLY = range(4)
POSITIONS = (
    Position(first=True, last=False),
    Position(first=False, last=False),
    Position(first=False, last=True),
    Position(first=True, last=True),
)


@frozen(eq=False)
class DepthCosts:
    """Tables for pipelines of one depth; slots as above, batches as in `Costs.batches`."""

    depth: int
    batches: Ints
    """Requests of each batch index, ascending."""
    caps: Ints
    """Most layers whose KV cache holds the batch: (slots, batches)."""
    work: Floats
    """Seconds (slots, batches, 4): prefill a layer, prefill fixed, decode a layer and fixed."""
    _derived: dict[str, Any] = field(factory=dict, init=False)

    def cached(self, name: str, make: Callable[[], T]) -> T:
        """Something that follows from these tables, made once."""
        if name not in self._derived:
            self._derived[name] = make()
        value: T = self._derived[name]
        return value


@define(frozen=True, slots=False, eq=False)
class Costs:
    """Tables of an estimator for some stage kinds, made when they are first asked for."""

    estimator: BoundEstimator
    kinds: Sequence[StageKind]
    within: tuple[int, int] | None = None
    """Least and greatest batch to look at; None is all."""
    _depths: dict[int, DepthCosts] = field(factory=dict, init=False)

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return self.estimator.model.layers

    @cached_property
    def limits(self) -> Ints:
        """Batch limits (slots, layers + 1)."""
        return np.array(
            [self.estimator.batch_limit(k, where) for where in POSITIONS for k in self.kinds]
        ).reshape(-1, self.layers + 1)

    @cached_property
    def batches(self) -> Ints:
        """Every batch that a pipeline can have, ascending."""
        values = np.unique(self.limits[:, 1:])
        low, high = self.within or (1, np.iinfo(np.int64).max)
        return values[(values >= low) & (values <= high)]

    @cached_property
    def caps(self) -> Ints:
        """Most layers of a slot at a batch: (slots, batches)."""
        rising = -self.limits[:, 1:]
        return np.array([np.searchsorted(row, -self.batches, side="right") for row in rising])

    def at(self, depth: int) -> DepthCosts:
        """Tables for pipelines of `depth` stages, for the batches that they can have."""
        if depth not in self._depths:
            self._depths[depth] = self.tabulate(depth)
        return self._depths[depth]

    def tabulate(self, depth: int) -> DepthCosts:
        """The same, without remembering it."""
        enough = self.caps.max(axis=0, initial=0) * depth >= self.layers
        batches, caps = self.batches[enough], self.caps[:, enough]
        work = np.zeros((len(caps), len(batches), 4))
        positions = (ONLY,) if depth == 1 else (FIRST, MIDDLE, LAST)
        for place in positions:
            for index, kind in enumerate(self.kinds):
                slot = place * len(self.kinds) + index
                parts = self.estimator.stage_work(kind, POSITIONS[place], depth, batches)
                work[slot] = np.stack(parts, axis=1)
        return DepthCosts(depth, batches, caps, work)

    def alone(self, depth: int) -> Floats:
        """Latency of a lone request, (slots, 2): seconds a layer, and fixed."""
        rows = [
            self.estimator.alone(kind, where, depth) for where in POSITIONS for kind in self.kinds
        ]
        return np.array(rows)
