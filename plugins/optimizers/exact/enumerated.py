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
from shuntserve_plugins.optimizers.exact.columns import Columns
from shuntserve_plugins.optimizers.exact.costs import Costs
from shuntserve_plugins.optimizers.exact.master import Choice, Master, Relaxation
from shuntserve_plugins.optimizers.exact.relax import pair_bounds, throughput_bounds
from shuntserve_plugins.optimizers.exact.splits import Splitter

_TOLERANCE = 1e-9
_PROBES = np.array([0.97, 0.85, 0.0])
"""How far below its bound a set is searched, at the first, second and third time."""
_AT_LEAST = 0.99
"""And how far at least: else bounds would creep towards the prices they set themselves."""
_MOST_WISHES = 2000
_WISHING = 0.5
"""Columns and seconds that an integer program over bounds may have."""
_WHOLE = 2.0**53
"""Below this, floats count without gaps."""
_STILL = 2e-3
"""Relative change of the linear program's value that more bounds at single batches must bring."""
_AT_ONCE = 120
"""Sets that are looked at more closely before the linear program is solved again."""


@define(eq=False)
class Enumerated:
    """One search; `columns` hold what it has learnt."""

    costs: Costs
    master: Master
    columns: Columns
    deadline: float
    alike: Ints = field(init=False)
    """Number of the group of sets that use the same GPUs; only the best of a group matters."""
    last: float = np.finfo(float).max
    """Value of the linear program when sets were last looked at."""
    active: Ints = field(factory=lambda: np.zeros(0, dtype=np.int64))

    def __attrs_post_init__(self) -> None:
        usage, steps = self.columns.usage, self.master.resources.available + 1
        if steps.prod() < _WHOLE:
            numbers = usage @ (np.cumprod(steps) / steps)
            self.alike = np.unique(numbers, return_inverse=True)[1]
        else:
            self.alike = np.unique(usage, axis=0, return_inverse=True)[1].reshape(-1)

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
        return cls(
            costs, master, Columns(master.resources, sets[keep], usage[keep], bound[keep]), deadline
        )

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
            hopeful = self._hopeful(gain, gap)
            if not len(hopeful):
                best, chosen = self._choose(best, chosen, relaxed, gain, final=True)
                return best, chosen, min(relaxed.value, best.bound)
            if time.monotonic() > self.deadline:
                return best, chosen, relaxed.value
            wish, wished = self._wish(gain, gap) if fresh else (best, hopeful[:0])
            if len(wished) and columns.solved[wished].all():
                bound = max(wish.value, best.value, min(relaxed.value, wish.bound))
                better = wish.value > best.value + _TOLERANCE
                return (wish, wished, bound) if better else (best, chosen, bound)
            urgent = np.isin(hopeful, wished)
            order = np.lexsort((-gain[hopeful], ~urgent))
            fresh = self._examine(hopeful[order], relaxed, gap)

    def _hopeful(self, gain: Floats, gap: float) -> Ints:
        """Sets that are not solved, could be in a better placement, and that no solved set beats.

        A solved set beats those that use the same GPUs and are worth no more.
        """
        columns, solved = self.columns, self.columns.solved
        reached = np.zeros(int(self.alike.max(initial=0)) + 1)
        np.maximum.at(reached, self.alike[solved], columns.bound[solved])
        return np.flatnonzero((gain > -gap) & ~solved & (columns.bound > reached[self.alike]))

    def _wish(self, gain: Floats, gap: float) -> tuple[Choice, Ints]:
        """The best choice if every set were worth its bound: an upper bound on all placements.

        Those sets are the ones to look at next; if they are solved, nothing is better.
        """
        columns = self.columns
        rows = self._undominated(np.flatnonzero((gain > -gap) & (columns.bound > 0)))
        nothing = np.zeros(0, dtype=np.int64)
        if not np.isfinite(gap) or len(rows) > _MOST_WISHES:
            return Choice(np.inf, np.inf, nothing), nothing
        seconds = min(_WISHING, self.deadline - time.monotonic())
        found = self.master.choose(columns.bound[rows], columns.usage[rows], seconds)
        if found.bound - found.value > _TOLERANCE * max(1.0, abs(found.value)):
            return found, nothing
        return found, np.repeat(rows, found.used)

    def _undominated(self, rows: Ints) -> Ints:
        """Sets, without those that another one beats with no more GPUs.

        Of sets that use the same GPUs and are worth as much, a solved one stays if there is one.
        """
        columns = self.columns
        rows = rows[np.lexsort((~columns.solved[rows], -columns.bound[rows]))]
        rows = rows[np.unique(self.alike[rows], return_index=True)[1]]
        if len(rows) > _MOST_WISHES:
            return rows
        less = np.ones((len(rows), len(rows)), dtype=bool)
        for use in (*columns.usage[rows].T, -columns.bound[rows]):
            less &= use[:, None] <= use
        return np.asarray(rows[less.sum(axis=0) == 1])

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
        usable = self._undominated(np.flatnonzero((gain > -gap) & columns.solved))
        found = self.master.choose(
            columns.bound[usable], columns.usage[usable], self.deadline - time.monotonic()
        )
        if found.value > best.value + _TOLERANCE:
            return found, np.repeat(usable, found.used)
        return best._replace(bound=max(found.bound, best.value) if final else best.bound), chosen

    def _examine(self, rows: Ints, relaxed: Relaxation, gap: float) -> bool:
        """Look closer at the most promising sets; returns whether any was solved.

        Bounds at single batches come first: they are cheap, and prices that follow from them
        leave fewer sets to be split.
        """
        columns = self.columns
        depths = columns.sets.sum(axis=1)
        rows = rows[:_AT_ONCE]
        new = np.array([row for row in rows.tolist() if row not in columns.pairs], dtype=np.int64)
        for depth in np.unique(depths[new]):
            self._pair(new[depths[new] == depth], int(depth))
        before, self.last = self.last, relaxed.value
        if len(new) and relaxed.value < before - _STILL * abs(before):
            return False
        needed = (columns.usage[rows] @ relaxed.prices - gap) / max(relaxed.weight, 1e-12)
        probe = _PROBES[np.minimum(columns.probes[rows], len(_PROBES) - 1)]
        threshold = np.maximum(needed - _TOLERANCE, probe * columns.bound[rows])
        threshold = np.minimum(threshold, _AT_LEAST * columns.bound[rows])
        columns.probes[rows] += 1
        solved = [
            self._split(rows[which], threshold[which], int(depth))
            for depth in np.unique(depths[rows])
            for which in (np.flatnonzero(depths[rows] == depth),)
        ]
        return any(solved)

    def _pair(self, rows: Ints, depth: int) -> None:
        """Bound sets of one depth at every single batch."""
        pairs = pair_bounds(
            self.costs.estimator,
            self.costs.at(depth),
            self.columns.sets[rows],
            self.master.objective.slo,
        )
        ends = np.searchsorted(pairs.row, np.arange(len(rows) + 1))
        for index, row in enumerate(rows):
            mine = slice(ends[index], ends[index + 1])
            self.columns.pairs[int(row)] = pairs.batch[mine], pairs.bound[mine]
            bound = pairs.bound[mine].max(initial=0.0)
            self.columns.bound[row] = min(self.columns.bound[row], bound)

    def _split(self, rows: Ints, threshold: Floats, depth: int) -> bool:
        """Look for splits of sets of one depth that beat the thresholds."""
        columns = self.columns
        row = np.repeat(np.arange(len(rows)), [len(columns.pairs[r][0]) for r in rows.tolist()])
        batch, limit = (
            np.concatenate([columns.pairs[r][part] for r in rows.tolist()]) for part in (0, 1)
        )
        keep = np.flatnonzero(limit > threshold[row])
        splitter = Splitter(self.costs, depth, self.master.objective.slo)
        bound, found = splitter.best(
            columns.sets[rows], row[keep], batch[keep].astype(np.int64), threshold
        )
        columns.bound[rows] = bound
        solved = {int(r): split for r, split in zip(rows, found, strict=True) if split}
        columns.splits.update(solved)
        return bool(solved)

    def ceiling(self) -> float:
        """An upper bound on the objective."""
        return self.relax().value

    @property
    def hopeless(self) -> bool:
        """Whether no set of stages holds the model."""
        return not len(self.columns.sets)
