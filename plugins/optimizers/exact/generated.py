"""Search where there are too many sets of stages to list: column generation.

The linear program over the sets known so far gives prices; the grid of cells says which pipelines
could be worth more than their price, and by how much at most.  The best of them become new
columns.  When nothing is gained any more, or time is over, whole numbers are chosen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from attrs import define, field

from shuntserve_core.interfaces.estimator import Floats, Ints
from shuntserve_core.planning.building import worth
from shuntserve_plugins.optimizers.common import Stages
from shuntserve_plugins.optimizers.exact.columns import Columns
from shuntserve_plugins.optimizers.exact.costs import Costs
from shuntserve_plugins.optimizers.exact.grid import (
    Grid,
    cheapest_stages,
    grids,
    stages_at_hand,
)
from shuntserve_plugins.optimizers.exact.master import Choice, Master, Relaxation
from shuntserve_plugins.optimizers.exact.splits import Split, Splitter

_TOLERANCE = 1e-9
_PER_ROUND = 40
"""New columns between two linear programs."""
_FOR_CHOICE = 0.25
"""Share of the time left that is kept for the integer program."""
_ENOUGH = 2e-3
"""Relative gain of the linear program below which a round counts as idle."""
_IDLE_ROUNDS = 4
_RAISED = (1.0, 1.03, 1.06, 1.1, 1.15, 1.2, 1.3, 1.45, 1.7, 2.0)
"""Factors on all prices, of which the one that proves most is taken."""
_SMOOTHING = 0.5
"""How much the prices of a round keep of those before: they jump about otherwise."""


@define(eq=False)
class Generated:
    """One search; `columns` hold the sets found so far."""

    costs: Costs
    master: Master
    grid: list[Grid]
    columns: Columns
    deadline: float
    depth: int
    starts: list[Ints] = field(factory=list)
    """Placements known from elsewhere: the number of each of their columns."""
    _seen: set[tuple[int, ...]] = field(factory=set)

    @classmethod
    def of(cls, costs: Costs, master: Master, depth: int, deadline: float) -> Generated:
        """Lay out the cells."""
        kinds, rows = master.resources.usage.shape
        columns = Columns(
            master.resources, np.zeros((0, kinds), dtype=np.int64), np.zeros((0, rows)), np.zeros(0)
        )
        found = cls(costs, master, list(grids(costs, depth)), columns, deadline, depth)
        found._seed()
        return found

    @property
    def hopeless(self) -> bool:
        """Whether no pipeline holds the model."""
        return not self.grid

    def ceiling(self) -> float:
        """An upper bound on the objective."""
        return self._generate()[1]

    def run(self, known: float = -np.inf, *, first: bool = False) -> tuple[Choice, Ints, float]:
        """Best choice found, its columns, and the proved bound; see `Enumerated.run`."""
        _, bound = self._generate(rounds=1 if first else None)
        columns = self.columns
        nothing = np.zeros(0, dtype=np.int64)
        if not len(columns.bound):
            return Choice(known, bound, nothing), nothing, bound
        seconds = self.deadline - time.monotonic()
        found = self.master.choose(columns.bound, columns.usage, seconds, self._start())
        if found.value > known + _TOLERANCE:
            return found, np.repeat(np.arange(len(columns.bound)), found.used), bound
        return Choice(known, bound, nothing), nothing, max(bound, known)

    def begin_with(self, placement: Sequence[Stages]) -> None:
        """Take the pipelines of a placement as columns, so that no worse one is answered."""
        numbers = [self._add_pipeline(stages) for stages in placement]
        self.starts.append(np.array(numbers, dtype=np.int64))

    def _add_pipeline(self, stages: Stages) -> int:
        number = {kind: index for index, kind in enumerate(self.costs.kinds)}
        chosen = [number[kind] for kind, _ in stages]
        layers = [count for _, count in stages]
        scores = self.costs.estimator.scores(
            self.costs.kinds, np.array([chosen]), np.array([layers])
        )
        value = float(worth(self.master.objective, scores)[0])
        split = Split(tuple(zip(chosen, layers, strict=True)), value)
        full = np.bincount(chosen, minlength=len(number))[None, :]
        return self._append(full, split)

    def _start(self) -> Ints | None:
        """How often each column is used by the best placement known from elsewhere."""
        columns = self.columns
        if not self.starts:
            return None
        best = max(self.starts, key=self._value)
        return np.bincount(best, minlength=len(columns.bound))

    def _value(self, start: Ints) -> float:
        """Of the objective."""
        kind, columns = self.master.objective.kind, self.columns
        if kind == "throughput":
            return columns.worth(start)
        if kind == "cost":
            return -columns.cost(start)
        return columns.worth(start) / max(columns.cost(start), 1e-9)

    def _generate(self, rounds: int | None = None) -> tuple[Relaxation, float]:
        """Add columns until they stop helping; returns the last relaxation and the bound."""
        best, idle, done = np.inf, 0, 0
        stop = time.monotonic() + (1 - _FOR_CHOICE) * (self.deadline - time.monotonic())
        relaxed = self.master.relax(self.columns.bound, self.columns.usage)
        prices, weight = self._first_prices(relaxed)
        while True:
            gain, costs = self._price(prices, weight)
            if relaxed.value > -np.inf:
                best = min(best, self._proved(prices, weight, costs))
            added = self._add(prices, weight, gain)
            before, relaxed = (
                relaxed.value,
                self.master.relax(self.columns.bound, self.columns.usage),
            )
            if np.isfinite(relaxed.value):
                keep = _SMOOTHING if np.isfinite(before) and added else 0.0
                prices = keep * prices + (1 - keep) * relaxed.prices
                weight = keep * weight + (1 - keep) * relaxed.weight
            done += 1
            progress = relaxed.value - before > _ENOUGH * abs(relaxed.value)
            idle = 0 if progress or not np.isfinite(before) else idle + 1
            if time.monotonic() > stop or idle >= _IDLE_ROUNDS or done == rounds:
                return relaxed, best

    def _first_prices(self, relaxed: Relaxation) -> tuple[Floats, float]:
        """Prices to begin with: of the linear program, or in proportion to scarcity."""
        if np.isfinite(relaxed.value) and len(self.columns.bound):
            return relaxed.prices, relaxed.weight
        return 1 / np.maximum(self.master.resources.available, 1e-9), 1.0

    def _price(self, prices: Floats, weight: float) -> tuple[list[Floats], list[Floats]]:
        """Upper bounds on worth less price of each cell, and lower bounds on the price."""
        of_kinds = self.master.resources.usage @ prices
        costs = [grid.least_cost(of_kinds) for grid in self.grid]
        gains = [weight * g.worth - cost for g, cost in zip(self.grid, costs, strict=True)]
        return gains, costs

    def _proved(self, prices: Floats, weight: float, costs: list[Floats]) -> float:
        """An upper bound on the objective from any prices.

        What all instances are worth at these prices, raised in proportion, and what each of the
        pipelines may then still be worth above its price.
        """
        best, most = np.inf, self._most_pipelines()
        for raised in _RAISED if not self.master.priced else (1.0,):
            base = self.master.dual_value(raised * prices, weight)
            extra = max(
                float((weight * grid.worth - raised * cost).max())
                for grid, cost in zip(self.grid, costs, strict=True)
            )
            best = min(best, base + max(extra, 0.0) * most)
        return best

    def _most_pipelines(self) -> float:
        """How many pipelines the instances can hold at most."""
        held = self.costs.limits[:, 1:].reshape(4, len(self.costs.kinds), -1)
        layers = (held > 0).sum(axis=2).max(axis=0)
        resources = self.master.resources
        with np.errstate(divide="ignore", invalid="ignore"):
            per_unit = np.asarray(layers[:, None] / resources.usage, dtype=np.float64)
        each = np.where(resources.usage > 0, per_unit, 0.0)
        owners: dict[int, float] = {}
        for row, owner in enumerate(resources.owners.tolist()):
            room = float(each[:, row].max(initial=0)) * float(resources.available[row])
            owners[owner] = min(owners.get(owner, np.inf), room)
        return sum(owners.values()) / self.costs.layers

    def _add(self, prices: Floats, weight: float, gains: list[Floats]) -> int:
        """Turn the most promising cells into columns: one of each depth and batch interval."""
        of_kinds = self.master.resources.usage @ prices
        candidates: list[tuple[float, int, int]] = []
        for number, (grid, gain) in enumerate(zip(self.grid, gains, strict=True)):
            order = np.argsort(-gain)
            _, first = np.unique(grid.least[order], return_index=True)
            candidates += [(float(gain[cell]), number, int(cell)) for cell in order[first]]
        candidates.sort(reverse=True)
        added = 0
        for most, number, index in candidates:
            over = not most > 0 or time.monotonic() > self.deadline
            if added == _PER_ROUND or (over and len(self.columns.bound)):
                break
            added += self._add_from(self.grid[number], index, of_kinds)
        return added

    def _seed(self) -> None:
        """Columns of one kind each, so that every instance type has a price from the start."""
        for kind in range(len(self.costs.kinds)):
            costs = Costs(self.costs.estimator, [self.costs.kinds[kind]])
            fewest = -(-self.costs.layers // max(int(costs.caps.max(initial=0)), 1))
            for depth in sorted({fewest + 1, 3 * fewest // 2 + 1, 5 * fewest // 2 + 1}):
                if depth <= self.depth and len(costs.batches):
                    self._add_column([kind] * depth, (1, int(costs.batches[-1])))

    def _add_from(self, grid: Grid, index: int, of_kinds: Floats) -> bool:
        """Make a column of the cheapest stages of a cell; False if it is known or useless."""
        cell = grid.cell(index)
        resources = self.master.resources
        chosen = cheapest_stages(cell, of_kinds, grid.depth, grid.layers)
        if chosen is None or (resources.usage[chosen].sum(axis=0) > resources.available).any():
            chosen = stages_at_hand(cell, of_kinds, grid.layers, resources)
        key = (*sorted(chosen or ()), cell.batches[0])
        if chosen is None or key in self._seen:
            return False
        self._seen.add(key)
        near = int(cell.batches[0] / 1.1), int(cell.batches[1] * 1.1) + 1
        return self._add_column(list(chosen), near)

    def _add_column(self, chosen: list[int], near: tuple[int, int]) -> bool:
        """Add the best split of a set of stages at batches `near`; False if there is none."""
        kinds = sorted(set(chosen))
        counts = np.array([[chosen.count(kind) for kind in kinds]])
        full = np.zeros((1, len(self.costs.kinds)), dtype=np.int64)
        full[0, kinds] = counts[0]
        usage = full @ self.master.resources.usage
        if (usage > self.master.resources.available + _TOLERANCE).any():
            return False
        costs = Costs(self.costs.estimator, [self.costs.kinds[kind] for kind in kinds], near)
        splitter = Splitter(costs, len(chosen), self.master.objective.slo)
        batches = np.arange(len(splitter.tables.batches))
        _, found = splitter.best(counts, 0 * batches, batches, np.zeros(1))
        split = found[0]
        if split is None:
            return False
        stages = tuple((kinds[kind], layers) for kind, layers in split.stages)
        self._append(full, split._replace(stages=stages))
        return True

    def _append(self, full: Ints, split: Split) -> int:
        """Add a column; returns its number."""
        columns, number = self.columns, len(self.columns.bound)
        columns.splits[number] = split
        columns.sets = np.vstack([columns.sets, full])
        columns.usage = np.vstack([columns.usage, full @ self.master.resources.usage])
        columns.bound = np.append(columns.bound, split.worth)
        return number
