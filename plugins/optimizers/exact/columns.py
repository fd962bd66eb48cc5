"""Sets of stages as columns of the integer program."""

from __future__ import annotations

import numpy as np
from attrs import define, field

from shuntserve_core.interfaces.estimator import Floats, Ints
from shuntserve_plugins.optimizers.exact.multisets import Resources
from shuntserve_plugins.optimizers.exact.splits import Split

_TOLERANCE = 1e-9


@define(eq=False)
class Columns:
    """Sets of stages, what they use, and what is known of their worth."""

    resources: Resources

    sets: Ints
    usage: Floats
    bound: Floats
    """Upper bounds; the worth itself where there is a split."""
    splits: dict[int, Split] = field(factory=dict)
    pairs: dict[int, tuple[Ints, Floats]] = field(factory=dict)
    """Batches that each set can have and their bounds, for sets looked at more closely."""

    probes: Ints = field(init=False)
    """How often each set has been searched for a split."""

    def __attrs_post_init__(self) -> None:
        self.probes = np.zeros(len(self.bound), dtype=np.int64)

    @property
    def solved(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which are known exactly."""
        mask = np.zeros(len(self.bound), dtype=bool)
        mask[list(self.splits)] = True
        return mask

    def worth(self, chosen: Ints) -> float:
        """Sum of the worth of sets, by number."""
        return float(self.bound[chosen].sum())

    def cost(self, chosen: Ints) -> float:
        """$ per hour of the instances that sets need together."""
        shares = self.resources.shares
        need = np.ceil(self.usage[chosen].sum(axis=0) / shares - _TOLERANCE)
        nodes = np.zeros(len(self.resources.counts))
        np.maximum.at(nodes, self.resources.owners, need)
        return float(nodes @ self.resources.prices)
