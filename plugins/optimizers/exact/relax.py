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
from shuntserve_core.planning.building import slo_factor
from shuntserve_core.types import Slo
from shuntserve_plugins.optimizers.exact.costs import FIRST, ONLY, DepthCosts

WINDOWS = (3, 5, 8, 12, 20, 0)
"""Batches in each window, from the greatest feasible one down; 0 is all the rest."""
NEWTON_STEPS = 2
HALVINGS = 4
"""Steps in search of the least seconds: with fractions of layers, then with whole ones."""
CHUNK = 512
"""Sets that are bounded at once: few enough for the processor's cache."""
SHARES = 128
"""Intervals of A / (A + D) on which `period` is bounded."""
_ROUNDING = 1e-8
"""Layers that rounding may cost."""
_NOTHING = 1e-31
"""Seconds a layer that are none at all."""


@frozen(eq=False)
class _Window:
    """Tables for batches b − width + 1 to b, per request: entry b of the batch axis."""

    caps: Floats
    """(places, kinds, batches): first, middle, last; or only."""
    pace: tuple[Floats, Floats]
    """(3, places, kinds, batches): in prefill, decode and both, layers a second, and layers that
    the fixed seconds cost."""
    rate: Floats
    base: Floats
    """(3, kinds, batches): layers a second and fixed seconds, where a stage does best."""
    most: Floats
    """(kinds, batches): most layers, where a stage does best."""
    period: Floats
    """(batches, levels, SHARES): least period for A + D = 1 and A / (A + D) in 2^k intervals."""


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
        """Most layers that sets hold, given caps (..., places, kinds, n)."""
        if caps.shape[-3] == 1:
            return np.asarray((self.stages * caps[..., 0, :, :]).sum(axis=-2))
        first, middle, last = (caps[..., place, :, :] for place in range(3))
        others = (self.stages * middle).sum(axis=-2)
        at_first = (first - middle + self.missing).max(axis=-2)
        return np.asarray(others + at_first + (last - middle + self.missing).max(axis=-2))


def _window(estimator: BoundEstimator, costs: DepthCosts, width: int) -> _Window:
    batches = costs.batches
    per_request = costs.work / batches[:, None]
    parts = per_request.reshape(len(costs.caps), len(batches), 2, 2)
    work = np.concatenate([parts, parts.sum(axis=2, keepdims=True)], axis=2)
    lowest = np.maximum(np.arange(len(batches)) - width + 1, 0) if width else 0 * batches
    period = costs.cached("period", lambda: _periods(estimator, costs))
    period = _sliding_min(period, width)
    kinds = len(costs.caps) // 4
    least = _sliding_min(work.swapaxes(0, 1), width).transpose(2, 3, 1, 0)
    slope, base = np.ascontiguousarray(_by_place(least, costs.depth, kinds)).swapaxes(0, 1)
    slope = np.maximum(slope, _NOTHING)
    caps = _by_place(costs.caps[:, lowest].astype(np.float64), costs.depth, kinds)
    return _Window(
        caps,
        (1 / slope, base / slope - _ROUNDING),
        1 / slope.min(axis=1),
        base.min(axis=1),
        caps.max(axis=0),
        _range_min(period),
    )


def _periods(estimator: BoundEstimator, costs: DepthCosts) -> Floats:
    """(batches, SHARES): period per request at the lower corners of intervals of A / (A + D)."""
    batches, grid = costs.batches[:, None], np.linspace(0, 1, SHARES + 1)
    A, D = grid[:-1] * batches, (1 - grid[1:]) * batches
    return np.asarray(estimator.period(batches, costs.depth, A, D) / batches)


def _sliding_min(values: Floats, width: int) -> Floats:
    """Least of entries b − width + 1 to b on the first axis; width 0 is all up to b."""
    if not width:
        return np.asarray(np.minimum.accumulate(values, axis=0))
    padding = np.full((width - 1, *values.shape[1:]), np.inf)
    padded = np.concatenate([padding, values])
    return np.asarray(sliding_window_view(padded, width, axis=0).min(axis=-1))


def _range_min(values: Floats) -> Floats:
    """(n, m) to (n, levels, m): entry (k, i) is the least of 2^k entries from i on."""
    n, m = values.shape
    table = np.full((n, m.bit_length(), m), np.inf)
    table[:, 0] = values
    for level in range(1, m.bit_length()):
        half, some = 1 << (level - 1), m - (1 << level) + 1
        before = table[:, level - 1]
        np.minimum(before[:, :some], before[:, half : half + some], out=table[:, level, :some])
    return table


def _bound(window: _Window, sets: Ints, ends: Ints, layers: int, depth: int) -> Floats:
    return _throughput(window, ends, *_least(window, sets, ends, layers, depth))


def _least(
    window: _Window, sets: Ints, ends: Ints, layers: int, depth: int
) -> tuple[Floats, Floats, Floats]:
    """Least A, least D and least A + D, seconds a request."""
    least = np.empty((3, len(sets)))
    for start in range(0, len(sets), CHUNK):
        part = slice(start, start + CHUNK)
        least[:, part] = _least_seconds(window, _Counts.of(sets[part]), ends[part], layers, depth)
    prefill, decode, both = least
    return prefill, decode, np.maximum(both, prefill + decode)


def _throughput(
    window: _Window, ends: Ints, prefill: Floats, decode: Floats, both: Floats
) -> Floats:
    """Most requests per second with at least these A, D and A + D."""
    first = np.minimum((prefill / both * SHARES).astype(np.int64), SHARES - 1)
    last = np.minimum(np.ceil((1 - decode / both) * SHARES).astype(np.int64), SHARES) - 1
    last = np.maximum(last, first)
    level = np.frexp(last - first + 1)[1] - 1
    least = np.minimum(
        window.period[ends, level, first], window.period[ends, level, last + 1 - (1 << level)]
    )
    return np.asarray((1 + 1e-9) / (least * both))


def _least_seconds(window: _Window, counts: _Counts, ends: Ints, layers: int, depth: int) -> Floats:
    """Lower bounds (3, n) on the slowest stage's seconds: in prefill, in decode and in both.

    First with fractions of layers and every stage where it does best: that is concave in the
    seconds, so the steps of Newton's method stay below.  Whole layers are fewer by one for each
    stage at most, and bisection within about that much is closer.
    """
    rate, base, most = window.rate[..., ends], window.base[..., ends], window.most[..., ends]
    weighted = counts.stages * rate
    offset = base * rate
    total = weighted.sum(axis=1)
    alone = np.where(counts.stages > 0, base + 1 / rate, 0).max(axis=1)
    low = np.maximum(alone, (layers + (counts.stages * offset).sum(axis=1)) / total)
    for _ in range(NEWTON_STEPS):
        fits = low[:, None] * rate - offset
        free = fits < most
        missing = layers - (counts.stages * np.minimum(fits, most)).sum(axis=1)
        total = (weighted * free).sum(axis=1)
        low = low + np.maximum(missing, 0) / np.where(total > 0, total, np.inf)
    per_second, start, caps = (table[..., ends] for table in (*window.pace, window.caps))
    width = depth / np.where(total > 0, total, np.inf)
    buffer = np.empty_like(per_second)
    for _ in range(HALVINGS):
        width = width / 2
        np.multiply((low + width)[:, None, None], per_second, out=buffer)
        buffer -= start
        np.minimum(buffer, caps, out=buffer)
        np.floor(buffer, out=buffer)
        low = np.where(counts.total(buffer) >= layers, low, low + width)
    return np.asarray(low * (1 - 2e-9))
