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
from shuntserve_core.planning.building import slo_factor
from shuntserve_core.types import Slo
from shuntserve_plugins.optimizers.exact.bottleneck import (
    Shares,
    capped,
    layers_within,
    slowest_at_least,
    slowest_roughly,
)
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

    def worth(
        self, batch: Ints, prefill: Floats, decode: Floats, latency: Floats | None = None
    ) -> Floats:
        """Throughput after the limits on latency; 0 where A or D is infinite."""
        fits = np.isfinite(prefill) & np.isfinite(decode)
        A, D = np.where(fits, prefill, 1.0), np.where(fits, decode, 1.0)
        requests = self.tables.batches[batch]
        estimator = self.costs.estimator
        throughput = requests / estimator.period(requests, self.depth, A, D)
        if self.slo.limited:
            ttft, tpot = estimator.latencies(requests, self.depth, A, D)
            throughput = throughput * slo_factor(
                self.slo, np.zeros_like(ttft) if latency is None else latency, ttft, tpot
            )
        return np.where(fits, throughput, 0.0)

    def best(
        self, sets: Ints, row: Ints, batch: Ints, threshold: Floats
    ) -> tuple[Floats, list[Split | None]]:
        """Best split of each set (n, kinds) that is worth more than its threshold.

        `row` and `batch` are the pairs of set and batch index to look at.  Returns upper bounds
        (n,): the split's worth where there is one, the threshold elsewhere.
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
        A = slowest_roughly(*pace.prefill, items.shares, layers)
        D = slowest_roughly(*pace.decode, items.shares, layers)
        both = slowest_roughly(
            pace.prefill[0] + pace.decode[0], pace.prefill[1] + pace.decode[1], items.shares, layers
        )
        return self._relaxed(items.batch, A, D, both, self._least_latency(items))

    def _least_latency(self, items: Items) -> Floats | None:
        """Least latency of a lone request (n,), where it is limited: the quickest stages filled."""
        if self.slo.latency is None:
            return None
        alone = self.costs.alone(self.depth)[items.slot]
        order = np.argsort(alone[..., 0], axis=1)
        count, low, high = (
            np.take_along_axis(part, order, axis=1)
            for part in (items.shares.count, items.shares.low, items.shares.high)
        )
        slope = np.take_along_axis(alone[..., 0], order, axis=1)
        room = np.where(count > 0, count * (high - low), 0)
        rest = self.costs.layers - (count * low).sum(axis=1, keepdims=True)
        more = np.clip(rest - (np.cumsum(room, axis=1) - room), 0, room)
        layers = count * low + more
        fixed = (items.shares.count * alone[..., 1]).sum(axis=1)
        return np.asarray((slope * layers).sum(axis=1) + fixed) * (1 - 1e-9)

    def _relaxed(
        self, batch: Ints, A: Floats, D: Floats, both: Floats, latency: Floats | None
    ) -> Floats:
        """Greatest worth with at least A, at least D, and at least `both` in sum."""
        limit = np.zeros(len(A))
        spare = np.maximum(both - A - D, 0)
        parts = 8
        for part in range(parts):
            more = A + spare * part / parts, D + spare * (parts - 1 - part) / parts
            limit = np.maximum(limit, self.worth(batch, *more, latency))
        return limit * (1 + 1e-9)

    def _settle(self, items: Items, bounds: Floats, found: list[Split | None]) -> None:
        """Solve items exactly, and record what beats the bounds of their rows."""
        forced = self._force(items)
        if self.slo.latency is not None:
            limit = self._limit(forced)
            for index in np.argsort(-limit):
                if limit[index] > bounds[forced.row[index]]:
                    self._settle_with_latency(forced.pick(np.array([index])), bounds, found)
            return
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

    def _settle_with_latency(self, item: Items, bounds: Floats, found: list[Split | None]) -> None:
        """Solve one item under a limit on the latency of a lone request.

        Slower stages may now be worth their while, so all pairs of A and D are looked at; for
        each, the layers go to the stages that hold a lone request up least.
        """
        prefill, decode = ((slope[0], base[0]) for slope, base in self._pace(item))
        count, low, high = (
            part[0] for part in (item.shares.count, item.shares.low, item.shares.high)
        )
        A = _times(prefill, count, low, high)[:, None, None]
        D = _times(decode, count, low, high)[None, :, None]
        caps = np.minimum(layers_within(A, *prefill), layers_within(D, *decode))
        caps = np.where(count > 0, np.minimum(caps, high), 0)
        given = np.where(count > 0, low, 0)
        alone = self.costs.alone(self.depth)[item.slot[0]]
        layers, open_ = self._fill(caps, given, count, alone[:, 0])
        latency = (layers * alone[:, 0]).sum(axis=2) + (count * alone[:, 1]).sum()
        batch = np.full(latency.shape, item.batch[0])
        worth = self.worth(batch, A[..., 0] + 0 * latency, D[..., 0] + 0 * latency, latency)
        worth = np.where(open_, worth, 0)
        best = np.unravel_index(int(worth.argmax()), worth.shape)
        row = item.row[0]
        if worth[best] > bounds[row]:
            bounds[row] = worth[best]
            found[row] = self._laid_out(item, caps[best].astype(np.int64), alone[:, 0], worth[best])

    def _fill(
        self, caps: Floats, given: Ints, count: Ints, slowness: Floats
    ) -> tuple[Floats, Floats]:
        """Layers of each slot (..., slots), filled by slowness, and whether all fit."""
        rest = self.costs.layers - (count * given).sum() + np.zeros(caps.shape[:-1])
        fits = (caps >= given).all(axis=-1) & (rest >= 0)
        layers = np.zeros(caps.shape) + count * given
        for slot in np.argsort(slowness):
            more = np.clip(rest, 0, count[slot] * np.maximum(caps[..., slot] - given[slot], 0))
            layers[..., slot] += more
            rest = rest - more
        return layers, fits & (rest == 0)

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
        item = items.pick(one)
        prefill, decode = ((slope[one], base[one]) for slope, base in pace)
        shares = capped(capped(item.shares, *prefill, np.array([A])), *decode, np.array([D]))
        worth = self.worth(item.batch, np.array([A]), np.array([D]))
        return self._laid_out(item, shares.high[0], np.zeros(len(shares.high[0])), worth[0])

    def _laid_out(self, item: Items, caps: Ints, slowness: Floats, worth: float) -> Split:
        """One item's stages in order, the layers given out in the order of slowness."""
        kinds = len(self.costs.kinds)
        stages = [
            [int(item.slot[0, slot]), int(item.shares.low[0, slot]), int(caps[slot])]
            for slot in np.argsort(slowness, kind="stable")
            for _ in range(item.shares.count[0, slot])
        ]
        rest = self.costs.layers - sum(low for _, low, _ in stages)
        for stage in stages:
            more = min(rest, stage[2] - stage[1])
            stage[1] += more
            rest -= more
        assert rest == 0, "a feasible bottleneck holds the model"
        stages.sort(key=lambda stage: stage[0] // kinds)
        return Split(tuple((slot % kinds, layers) for slot, layers, _ in stages), float(worth))


def _times(pace: tuple[Floats, Floats], count: Ints, low: Ints, high: Ints) -> Floats:
    """Every time that a stage can take and that is not below what all must take."""
    slope, base = pace
    times = [
        slope[slot] * np.arange(low[slot], high[slot] + 1) + base[slot]
        for slot in range(len(count))
        if count[slot]
    ]
    least = max(float(part[0]) for part in times)
    every = np.unique(np.concatenate(times))
    return every[every >= least]
