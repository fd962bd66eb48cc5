"""Exact search where every set of stages can be listed.

Every set starts with an upper bound on its worth.  The linear program over the bounds gives
prices; only sets that could still improve the best placement at these prices are looked at more
closely, the most promising first, until each is either solved exactly or proved too weak.
"""

from __future__ import annotations

import time

import numpy as np
from attrs import define, field

from shuntserve_core.interfaces.estimator import Floats, Ints
from shuntserve_plugins.optimizers.exact.costs import Costs
from shuntserve_plugins.optimizers.exact.master import Choice, Master, Relaxation
from shuntserve_plugins.optimizers.exact.relax import pair_bounds, throughput_bounds
from shuntserve_plugins.optimizers.exact.splits import Split, Splitter

_TOLERANCE = 1e-9
_PROBE = 0.95
"""How far below its bound a set is searched at a time."""
_NEGLIGIBLE = 1e-3
"""Share of the best set's bound below which a set is solved whatever it is worth."""
_AT_ONCE = 48
"""Sets that are looked at more closely before the linear program is solved again."""


@define(eq=False)
class Columns:
    """Sets of stages, what they use, and what is known of their worth."""

    sets: Ints
    usage: Floats
    bound: Floats
    """Upper bounds; the worth itself where there is a split."""
    splits: dict[int, Split] = field(factory=dict)

    @property
    def solved(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which are known exactly."""
        mask = np.zeros(len(self.bound), dtype=bool)
        mask[list(self.splits)] = True
        return mask


@define(eq=False)
class Enumerated:
    """One search; `columns` hold what it has learnt."""

    costs: Costs
    master: Master
    columns: Columns
    deadline: float
    active: Ints = field(factory=lambda: np.zeros(0, dtype=np.int64))

    @classmethod
    def of(cls, costs: Costs, master: Master, sets: Ints, deadline: float) -> Enumerated:
        """Bound every set of stages."""
        depths = sets.sum(axis=1)
        bound = np.zeros(len(sets))
        for depth in np.unique(depths):
            rows = np.flatnonzero(depths == depth)
            bound[rows] = throughput_bounds(costs.estimator, costs.at(int(depth)), sets[rows])
        keep = np.flatnonzero(bound > 0)
        usage = sets @ master.resources.usage
        return cls(costs, master, Columns(sets[keep], usage[keep], bound[keep]), deadline)

    def run(self, known: float = -np.inf, *, first: bool = False) -> tuple[Choice, Ints, float]:
        """Best choice among sets that are solved, their numbers, and the proved bound.

        `known` is a value of the objective that is reached already; `first` stops at the first
        improvement.
        """
        columns = self.columns
        best, chosen = (
            Choice(known, np.inf, np.zeros(0, dtype=np.int64)),
            np.zeros(0, dtype=np.int64),
        )
        fresh = True
        while True:
            relaxed = self.relax()
            gain = relaxed.weight * columns.bound - columns.usage @ relaxed.prices
            if fresh and columns.splits:
                best, chosen = self._choose(best, chosen, relaxed, gain)
                if first and len(chosen):
                    return best, chosen, relaxed.value
            if not np.isfinite(relaxed.value):
                return best, chosen, relaxed.value
            gap = max(relaxed.value - best.value, 0.0) + _TOLERANCE
            solved = columns.solved
            hopeful = np.flatnonzero((gain > -gap) & ~solved & (columns.bound > 0))
            if not len(hopeful):
                best, chosen = self._choose(best, chosen, relaxed, gain, final=True)
                return best, chosen, min(relaxed.value, best.bound)
            if time.monotonic() > self.deadline:
                return best, chosen, relaxed.value
            fresh = self._examine(hopeful[np.argsort(-gain[hopeful])], relaxed, gap)

    def relax(self) -> Relaxation:
        """The linear program over all sets, brought in when they would improve it."""
        columns = self.columns
        if not len(self.active):
            density = columns.bound / (columns.usage / self.master.resources.available).sum(axis=1)
            self.active = np.union1d(np.argsort(-density)[:100], np.argsort(-columns.bound)[:100])
        while True:
            relaxed = self.master.relax(columns.bound[self.active], columns.usage[self.active])
            gain = relaxed.weight * columns.bound - columns.usage @ relaxed.prices
            gain[self.active] = 0
            better = np.flatnonzero(gain > _TOLERANCE)
            if not np.isfinite(relaxed.value) and len(self.active) < len(columns.bound):
                better = np.arange(len(columns.bound))
            if not len(better):
                return relaxed
            better = better[np.argsort(-gain[better])][:200]
            self.active = np.union1d(self.active, better)

    def _choose(
        self,
        best: Choice,
        chosen: Ints,
        relaxed: Relaxation,
        gain: Floats,
        *,
        final: bool = False,
    ) -> tuple[Choice, Ints]:
        """Solve the integer program over the sets that are solved and can matter."""
        columns = self.columns
        gap = max(relaxed.value - best.value, 0.0) + _TOLERANCE
        usable = np.flatnonzero((gain > -gap) & columns.solved)
        found = self.master.choose(
            columns.bound[usable], columns.usage[usable], self.deadline - time.monotonic()
        )
        if found.value > best.value + _TOLERANCE:
            return found, np.repeat(usable, found.used)
        return best._replace(bound=max(found.bound, best.value) if final else best.bound), chosen

    def _examine(self, rows: Ints, relaxed: Relaxation, gap: float) -> bool:
        """Look closer at the most promising sets; returns whether any was solved."""
        columns = self.columns
        rows = rows[:_AT_ONCE]
        needed = (columns.usage[rows] @ relaxed.prices - gap) / max(relaxed.weight, 1e-12)
        threshold = np.maximum(needed - _TOLERANCE, _PROBE * columns.bound[rows])
        threshold[threshold < _NEGLIGIBLE * columns.bound.max()] = 0
        threshold = np.clip(threshold, 0, columns.bound[rows])
        depths = columns.sets[rows].sum(axis=1)
        fresh = False
        for depth in np.unique(depths):
            which = np.flatnonzero(depths == depth)
            number, sets = rows[which], columns.sets[rows[which]]
            splitter = Splitter(self.costs, int(depth), self.master.objective.slo)
            pairs = pair_bounds(self.costs.estimator, splitter.tables, sets, threshold[which])
            bound, found = splitter.best(sets, pairs, threshold[which])
            columns.bound[number] = bound
            for index, split in zip(number, found, strict=True):
                if split is not None:
                    columns.splits[int(index)] = split
                    fresh = True
        return fresh

    def worth(self, chosen: Ints) -> float:
        """Sum of the worth of sets, by number."""
        return float(self.columns.bound[chosen].sum())

    def cost(self, chosen: Ints) -> float:
        """$ per hour of the instances that sets need together."""
        resources = self.master.resources
        need = np.ceil(self.columns.usage[chosen].sum(axis=0) / resources.shares - _TOLERANCE)
        nodes = np.zeros(len(resources.counts))
        np.maximum.at(nodes, resources.owners, need)
        return float(nodes @ resources.prices)
