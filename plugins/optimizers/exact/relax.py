"""A quick upper bound on the throughput of every set of stages.

For a set of stages and a window of batches, three numbers are found by bisection: the least A that
any split can reach if only prefill counted, likewise the least D, and the least A + D.  Position
is relaxed (any stage may be first, any may be last, even the same one), and so is the batch (every
stage works and holds as it does best within the window).  The bound follows from `period` on the
region that these three leave.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import frozen
from numpy.lib.stride_tricks import sliding_window_view

from shuntserve_core.interfaces.estimator import BoundEstimator, Floats, Ints
from shuntserve_core.placing import slo_factor
from shuntserve_core.types import Slo
from shuntserve_plugins.optimizers.exact.costs import FIRST, ONLY, DepthCosts

WINDOWS = (3, 5, 8, 12, 20, 0)
"""Batches in each window, from the greatest feasible one down; 0 is all the rest."""
STEPS = 8
"""Halvings of the interval in which the least seconds lie."""
SHARES = 24
"""Intervals of A / (A + D) on which `period` is bounded."""


@frozen(eq=False)
class _Window:
    """Tables for batches b − width + 1 to b, per request: entry b of the batch axis."""

    caps: Floats
    """(places, kinds, batches): first, middle, last; or only."""
    work: Floats
    """(3, 2, places, kinds, batches): in prefill, decode and both, seconds a layer and fixed."""
    period: Floats
    """(batches, SHARES, SHARES): least period for A + D = 1 and A / (A + D) in intervals i to j."""


def throughput_bounds(estimator: BoundEstimator, costs: DepthCosts, sets: Ints) -> Floats:
    """Upper bounds (n,) on the throughput of sets (n, kinds) of `costs.depth` stages each."""
    bounds = np.zeros(len(sets))
    if not len(costs.batches):
        return bounds
    layers = estimator.model.layers
    top = _greatest_batch(costs, sets, layers)
    shift = 0
    for width in WINDOWS:
        window = _window(estimator, costs, width)
        ends = top - shift
        rows = np.flatnonzero(ends >= 0)
        if len(rows):
            found = _bound(window, sets[rows], ends[rows], layers, costs.depth)
            bounds[rows] = np.maximum(bounds[rows], found)
        shift += width
    return bounds


@frozen(eq=False)
class Pairs:
    """Upper bounds on worth for sets of stages at single batches."""

    row: Ints
    batch: Ints
    """Index into the depth's batches."""
    bound: Floats

    def above(self, threshold: Floats) -> Pairs:
        """Those whose bound is above that of their row."""
        keep = np.flatnonzero(self.bound > threshold[self.row])
        return Pairs(self.row[keep], self.batch[keep], self.bound[keep])


def pair_bounds(estimator: BoundEstimator, costs: DepthCosts, sets: Ints, slo: Slo) -> Pairs:
    """Bounds on worth for every set (n, kinds) at every batch that it can have."""
    window = costs.cached("single", lambda: _window(estimator, costs, 1))
    layers = estimator.model.layers
    top = _greatest_batch(costs, sets, layers)
    row, batch = np.nonzero(np.arange(len(costs.batches)) <= top[:, None])
    if not len(row):
        return Pairs(row, batch, np.zeros(0))
    prefill, decode, both = _least(window, sets[row], batch, layers, costs.depth)
    bound = _throughput(window, batch, prefill, decode, both)
    if slo.limited:
        requests = costs.batches[batch]
        ttft, tpot = estimator.latencies(
            requests, costs.depth, prefill * requests, decode * requests
        )
        bound = bound * slo_factor(slo, np.zeros_like(ttft), ttft, tpot)
    return Pairs(row, batch, bound)


def _greatest_batch(costs: DepthCosts, sets: Ints, layers: int) -> Ints:
    """Greatest batch index at which the stages hold the model; −1 where none is."""
    low, high = np.full(len(sets), -1), np.full(len(sets), len(costs.batches) - 1)
    caps = _by_place(costs.caps, costs.depth, sets.shape[1]).astype(np.float64)
    counts = _Counts.of(sets)
    while (low < high).any():
        middle = (low + high + 1) // 2
        holds = counts.total(caps[..., middle]) >= layers
        low, high = np.where(holds, middle, low), np.where(holds, high, middle - 1)
    return np.asarray(low, dtype=np.int64)


def _by_place(table: Any, depth: int, kinds: int) -> Any:
    """(..., slots, batches) to (..., places, kinds, batches): first, middle, last; or only."""
    shaped = table.reshape(*table.shape[:-2], 4, kinds, table.shape[-1])
    return shaped[..., ONLY:, :, :] if depth == 1 else shaped[..., FIRST:ONLY, :, :]


@frozen(eq=False)
class _Counts:
    """Sets with the sets on the last axis, along which arithmetic is quick: (kinds, n)."""

    stages: Floats
    missing: Floats
    """0 for kinds that a set has, −inf for others."""

    @classmethod
    def of(cls, sets: Ints) -> _Counts:
        stages = np.ascontiguousarray(sets.T).astype(np.float64)
        return cls(stages, np.where(stages > 0, 0.0, -np.inf))

    def total(self, caps: Floats) -> Floats:
        """Most layers that sets hold, given caps (places, kinds, n)."""
        if len(caps) == 1:
            return np.asarray((self.stages * caps[0]).sum(axis=0))
        first, middle, last = caps
        others = (self.stages * middle).sum(axis=0)
        at_first = (first - middle + self.missing).max(axis=0)
        return np.asarray(others + at_first + (last - middle + self.missing).max(axis=0))


def _window(estimator: BoundEstimator, costs: DepthCosts, width: int) -> _Window:
    batches = costs.batches
    per_request = costs.work / batches[:, None]
    parts = per_request.reshape(len(costs.caps), len(batches), 2, 2)
    work = np.concatenate([parts, parts.sum(axis=2, keepdims=True)], axis=2)
    lowest = np.maximum(np.arange(len(batches)) - width + 1, 0) if width else 0 * batches
    grid = np.linspace(0, 1, SHARES + 1)
    period = (
        estimator.period(
            batches[:, None],
            costs.depth,
            grid[:-1] * batches[:, None],
            (1 - grid[1:]) * batches[:, None],
        )
        / batches[:, None]
    )
    period = _sliding_min(period, width)
    kinds = len(costs.caps) // 4
    least = _sliding_min(work.swapaxes(0, 1), width).transpose(2, 3, 1, 0)
    return _Window(
        _by_place(costs.caps[:, lowest].astype(np.float64), costs.depth, kinds),
        np.ascontiguousarray(_by_place(least, costs.depth, kinds)),
        _range_min(period),
    )


def _sliding_min(values: Floats, width: int) -> Floats:
    """Least of entries b − width + 1 to b on the first axis; width 0 is all up to b."""
    if not width:
        return np.asarray(np.minimum.accumulate(values, axis=0))
    padding = np.full((width - 1, *values.shape[1:]), np.inf)
    padded = np.concatenate([padding, values])
    return np.asarray(sliding_window_view(padded, width, axis=0).min(axis=-1))


def _range_min(values: Floats) -> Floats:
    """(n, m) to (n, m, m): least of entries i to j; infinite where j < i."""
    n, m = values.shape
    table = np.full((n, m, m), np.inf)
    for i in range(m):
        table[:, i, i:] = np.minimum.accumulate(values[:, i:], axis=1)
    return table


def _bound(window: _Window, sets: Ints, ends: Ints, layers: int, depth: int) -> Floats:
    return _throughput(window, ends, *_least(window, sets, ends, layers, depth))


def _least(
    window: _Window, sets: Ints, ends: Ints, layers: int, depth: int
) -> tuple[Floats, Floats, Floats]:
    """Least A, least D and least A + D, seconds a request."""
    counts, caps = _Counts.of(sets), window.caps[..., ends]
    prefill, decode, both = (
        _least_seconds(slope[..., ends], base[..., ends], caps, counts, layers)
        for slope, base in window.work
    )
    return prefill, decode, np.maximum(both, prefill + decode)


def _throughput(
    window: _Window, ends: Ints, prefill: Floats, decode: Floats, both: Floats
) -> Floats:
    """Most requests per second with at least these A, D and A + D."""
    first = np.minimum((prefill / both * SHARES).astype(np.int64), SHARES - 1)
    last = np.minimum(np.ceil((1 - decode / both) * SHARES).astype(np.int64), SHARES) - 1
    period = window.period[ends, first, np.maximum(last, first)] * both
    return np.asarray((1 + 1e-9) / period)


def _least_seconds(
    slope: Floats, base: Floats, caps: Floats, counts: _Counts, layers: int
) -> Floats:
    """A lower bound (n,) on the slowest stage's seconds; slopes and caps (places, kinds, n)."""
    slope = np.maximum(slope, 1e-300)
    present = (counts.missing == 0) & (caps > 0)
    low = np.where(present, slope + base, np.inf).min(axis=(0, 1)) * (1 - 1e-9)
    high = np.where(present, caps * slope + base, 0).max(axis=(0, 1))
    per_second, start = 1 / slope, base / slope
    for _ in range(STEPS):
        middle = (low + high) / 2
        fits = np.floor(np.minimum(np.maximum(middle * per_second - start, 0), caps) + 1e-9)
        enough = counts.total(fits) >= layers
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.asarray(low)
