"""The best split of the layers over a given set of stages.

A pipeline's throughput follows from its batch G and from the busy seconds A and D of its slowest
stages.  So for every arrangement (which kind of stage is first, which is last; the order between
does not matter) and every G: the stage that limits the batch to exactly G is singled out, the
others may hold what leaves room for G, and the Pareto front of (A, D) is walked from the least A
towards the least D.  Whatever cannot beat a row's threshold is dropped early.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from attrs import frozen

from shuntserve_core.interfaces.estimator import Floats, Ints
from shuntserve_core.placing import slo_factor
from shuntserve_core.types import Slo
from shuntserve_plugins.optimizers.exact.bottleneck import Shares, capped, slowest_at_least
from shuntserve_plugins.optimizers.exact.costs import FIRST, LAST, MIDDLE, ONLY, Costs, DepthCosts

_CLOSER = 1 - 4e-9
"""Relative step to the next point of a Pareto front; more than the slack of `layers_within`."""


class Split(NamedTuple):
    """A pipeline: (kind index, layers) in order, and what it is worth."""

    stages: tuple[tuple[int, int], ...]
    worth: float


@frozen(eq=False)
class Items:
    """Arrangements at one batch each; arrays over items."""

    row: Ints
    batch: Ints
    """Index into the batches of the depth."""
    slot: Ints
    """(n, slots) which table row, -1 for padding."""
    shares: Shares

    def pick(self, which: Ints) -> Items:
        """Some of the items."""
        return Items(self.row[which], self.batch[which], self.slot[which], self.shares.pick(which))


class Pace(NamedTuple):
    """Slopes and bases of the items' slots, in prefill and in decode."""

    prefill: tuple[Floats, Floats]
    decode: tuple[Floats, Floats]


@frozen(eq=False)
class Splitter:
    """Finds best splits of sets of stages of one depth."""

    costs: Costs
    depth: int
    slo: Slo

    @property
    def tables(self) -> DepthCosts:
        """Of this depth."""
        return self.costs.at(self.depth)

    def worth(self, batch: Ints, prefill: Floats, decode: Floats) -> Floats:
        """Throughput after the limits on TTFT and TPOT; 0 where A or D is infinite."""
        fits = np.isfinite(prefill) & np.isfinite(decode)
        A, D = np.where(fits, prefill, 1.0), np.where(fits, decode, 1.0)
        requests = self.tables.batches[batch]
        estimator = self.costs.estimator
        throughput = requests / estimator.period(requests, self.depth, A, D)
        if self.slo.limited:
            ttft, tpot = estimator.latencies(requests, self.depth, A, D)
            throughput = throughput * slo_factor(self.slo, np.zeros_like(ttft), ttft, tpot)
        return np.where(fits, throughput, 0.0)

    def best(
        self, sets: Ints, row: Ints, batch: Ints, threshold: Floats
    ) -> tuple[Floats, list[Split | None]]:
        """Best split of each set (n, kinds) that is worth more than its threshold.

        `row` and `batch` are the pairs of set and batch index to look at.  Returns upper bounds (n,) that are equal
        to the split's worth where there is one, and to the threshold elsewhere.
        """
        bounds = threshold.copy()
        found: list[Split | None] = [None] * len(sets)
        items = self._arrange(sets, row, batch)
        limit = self._limit(items)
        keep = np.flatnonzero(limit > bounds[items.row])
        items, limit = items.pick(keep), limit[keep]
        take = 1
        while len(items.row):
            order = np.lexsort((-limit, items.row))
            rank = np.arange(len(order)) - np.searchsorted(items.row[order], items.row[order])
            chosen = order[rank < take]
            self._settle(items.pick(chosen), bounds, found)
            rest = np.ones(len(order), dtype=bool)
            rest[chosen] = False
            rest &= limit > bounds[items.row]
            keep = np.flatnonzero(rest)
            items, limit = items.pick(keep), limit[keep]
            take *= 3
        return bounds, found

    def _arrange(self, sets: Ints, row: Ints, batch: Ints) -> Items:
        """Every choice of first and last stage for every (row, batch)."""
        kinds = sets.shape[1]
        caps = self.tables.caps
        widest = max(1, int((sets > 0).sum(axis=1).max(initial=1)))
        present = np.argsort(sets == 0, axis=1, kind="stable")[:, :widest]
        if self.depth == 1:
            slot = ONLY * kinds + present[row][:, :1]
            return self._items(row, batch, slot, np.ones_like(slot), caps)
        counts = np.take_along_axis(sets, present, axis=1)
        ends = np.array([(f, g) for f in range(widest) for g in range(widest)])
        left = np.repeat(counts[:, None, :], len(ends), axis=1)
        left[:, np.arange(len(ends)), ends[:, 0]] -= 1
        left[:, np.arange(len(ends)), ends[:, 1]] -= 1
        possible = np.asarray((left >= 0).all(axis=2))
        item, end = np.nonzero(possible[row])
        row, batch = row[item], batch[item]
        inner = present[row]
        slot = np.concatenate(
            [
                FIRST * kinds + np.take_along_axis(inner, ends[end, :1], axis=1),
                LAST * kinds + np.take_along_axis(inner, ends[end, 1:], axis=1),
                MIDDLE * kinds + inner,
            ],
            axis=1,
        )
        count = np.concatenate([np.ones((len(row), 2), dtype=np.int64), left[row, end]], axis=1)
        return self._items(row, batch, slot, count, caps)

    def _items(self, row: Ints, batch: Ints, slot: Ints, count: Ints, caps: Ints) -> Items:
        high = caps[slot, batch[:, None]]
        shares = Shares(count, np.ones_like(high), high)
        items = Items(row, batch, slot, shares)
        return items.pick(np.flatnonzero(shares.holds(self.costs.layers)))

    def _pace(self, items: Items) -> Pace:
        work = self.tables.work[items.slot, items.batch[:, None]]
        return Pace((work[..., 0], work[..., 1]), (work[..., 2], work[..., 3]))

    def _limit(self, items: Items) -> Floats:
        """Upper bounds on the items' worth: the least A and the least D at the same time."""
        if not len(items.row):
            return np.zeros(0)
        pace, layers = self._pace(items), self.costs.layers
        A = slowest_at_least(*pace.prefill, items.shares, layers)
        D = slowest_at_least(*pace.decode, items.shares, layers)
        both = slowest_at_least(
            pace.prefill[0] + pace.decode[0], pace.prefill[1] + pace.decode[1], items.shares, layers
        )
        return self._relaxed(items.batch, A, D, both)

    def _relaxed(self, batch: Ints, A: Floats, D: Floats, both: Floats) -> Floats:
        """Greatest worth with at least A, at least D, and at least `both` in sum."""
        limit = np.zeros(len(A))
        spare = np.maximum(both - A - D, 0)
        parts = 8
        for part in range(parts):
            more = A + spare * part / parts, D + spare * (parts - 1 - part) / parts
            limit = np.maximum(limit, self.worth(batch, *more))
        return limit * (1 + 1e-9)

    def _settle(self, items: Items, bounds: Floats, found: list[Split | None]) -> None:
        """Solve items exactly, and record what beats the bounds of their rows."""
        forced = self._force(items)
        pace, layers = self._pace(forced), self.costs.layers
        least_decode = slowest_at_least(*pace.decode, forced.shares, layers)
        limit = np.full(len(forced.row), np.inf)
        live = np.arange(len(forced.row))
        while len(live):
            now = forced.pick(live)
            slopes = Pace(
                (pace.prefill[0][live], pace.prefill[1][live]),
                (pace.decode[0][live], pace.decode[1][live]),
            )
            A = slowest_at_least(
                *slopes.prefill, capped(now.shares, *slopes.decode, limit[live]), layers
            )
            hopeful = self.worth(now.batch, A, least_decode[live]) > bounds[now.row]
            live, now, A = live[hopeful], now.pick(np.flatnonzero(hopeful)), A[hopeful]
            slopes = Pace(
                (pace.prefill[0][live], pace.prefill[1][live]),
                (pace.decode[0][live], pace.decode[1][live]),
            )
            D = slowest_at_least(*slopes.decode, capped(now.shares, *slopes.prefill, A), layers)
            worth = self.worth(now.batch, A, D)
            for index in np.argsort(worth):
                row = now.row[index]
                if worth[index] > bounds[row]:
                    bounds[row] = worth[index]
                    found[row] = self._split(now, slopes, int(index), A[index], D[index])
            limit[live] = D * _CLOSER

    def _force(self, items: Items) -> Items:
        """Single out, in every possible way, a stage whose limit is the batch itself."""
        caps = self.tables.caps
        at = items.batch
        above = np.minimum(at + 1, caps.shape[1] - 1)
        next_cap = np.where((at + 1 < caps.shape[1])[:, None], caps[items.slot, above[:, None]], 0)
        item, slot = np.nonzero((items.shares.high > next_cap) & (items.shares.count > 0))
        picked = items.pick(item)
        each = np.arange(len(item))
        count = picked.shares.count.copy()
        count[each, slot] -= 1
        one = np.ones((len(item), 1), dtype=np.int64)
        shares = Shares(
            np.concatenate([count, one], axis=1),
            np.concatenate([picked.shares.low, next_cap[item, slot][:, None] + 1], axis=1),
            np.concatenate([picked.shares.high, picked.shares.high[each, slot][:, None]], axis=1),
        )
        slots = np.concatenate([picked.slot, picked.slot[each, slot][:, None]], axis=1)
        forced = Items(picked.row, picked.batch, slots, shares)
        return forced.pick(np.flatnonzero(shares.holds(self.costs.layers)))

    def _split(self, items: Items, pace: Pace, index: int, A: float, D: float) -> Split:
        """Layers that take no longer than A and D."""
        one = np.array([index])
        prefill, decode = ((s[one], b[one]) for s, b in pace)
        shares = capped(
            capped(items.shares.pick(one), *prefill, np.array([A])), *decode, np.array([D])
        )
        kinds = len(self.costs.kinds)
        stages = [
            [int(slot) // kinds, int(slot) % kinds, int(low), int(high)]
            for slot, count, low, high in zip(
                items.slot[index], shares.count[0], shares.low[0], shares.high[0], strict=True
            )
            for _ in range(count)
        ]
        rest = self.costs.layers - sum(low for _, _, low, _ in stages)
        for stage in stages:
            more = min(rest, stage[3] - stage[2])
            stage[2] += more
            rest -= more
        assert rest == 0, "a feasible bottleneck holds the model"
        stages.sort(key=lambda stage: stage[0])
        worth = self.worth(items.batch[one], np.array([A]), np.array([D]))
        return Split(tuple((kind, layers) for _, kind, layers, _ in stages), float(worth[0]))
