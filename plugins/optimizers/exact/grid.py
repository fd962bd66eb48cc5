"""Upper bounds on what any set of stages is worth at given prices, without listing the sets.

Pipelines are sorted into cells: depth P, an interval of batches, an interval of T = A + D (per
request), an interval of A / T.  Within a cell a stage of kind k in a position holds at most c_k
layers, and no pipeline is worth more than v.  A pipeline of the cell needs stages that hold L
layers, so with prices p_k of stages and any λ ≥ 0 it costs at least

    λL + min_k(p_k − λ·first_k) + min_k(p_k − λ·last_k) + (P − 2)·min_k(p_k − λ·middle_k).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from attrs import frozen

from shuntserve_core.interfaces.estimator import BoundEstimator, Floats, Ints
from shuntserve_plugins.optimizers.exact.costs import FIRST, LAST, MIDDLE, ONLY, Costs, DepthCosts
from shuntserve_plugins.optimizers.exact.multisets import Resources

_HALVINGS = 9
"""Steps of the search for the best λ."""
_SHARES = np.array([0, 0.25, 0.4, 0.55, 0.7, 1.0])
"""Interval ends of A / T."""
_STEP = 1.08
"""Ratio of neighbouring ends of intervals of T."""
_BATCH_STEP = 1.15
"""Ratio within which batches share an interval."""
_PARTS = 6
"""Parts of an interval of A / T in which `period` is bounded."""
_LEVELS = 90
"""Intervals of T; what is slower shares a last one."""
_CHUNK = 4096


class Cell(NamedTuple):
    """One cell, as far as a search for columns needs it."""

    depth: int
    caps: Ints
    """(positions, kinds): first, middle, last; or only."""
    batches: tuple[int, int]
    """Least and greatest batch."""


@frozen(eq=False)
class Grid:
    """All cells of one depth."""

    depth: int
    layers: int
    caps: Ints
    """(cells, positions, kinds)."""
    worth: Floats
    """(cells,): upper bounds."""
    least: Ints
    greatest: Ints
    """(cells,): the batches of the interval."""

    def cell(self, index: int) -> Cell:
        """By number."""
        return Cell(
            self.depth, self.caps[index], (int(self.least[index]), int(self.greatest[index]))
        )

    def least_cost(self, prices: Floats) -> Floats:
        """Lower bounds (cells,) on the price of any pipeline of each cell."""
        parts = [
            self._least_cost(self.caps[start : start + _CHUNK], prices)
            for start in range(0, len(self.worth), _CHUNK)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _least_cost(self, caps: Ints, prices: Floats) -> Floats:
        """The bound of the module's docstring; its best λ by bisection, for it is concave in λ."""
        held = caps.astype(np.float32)
        usable = held > 0
        priced = np.where(usable, prices.astype(np.float32), np.float32(np.inf))
        times = [1] if self.depth == 1 else [1, self.depth - 2, 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(usable, priced / held, np.inf)
        cheapest = ratio.min(axis=(1, 2)).astype(np.float64)
        low = 0.3 * np.where(np.isfinite(cheapest), cheapest, 0.0) + 1e-12
        high = np.full(len(caps), 2 * float(prices.max(initial=0)) + 1e-9)
        needed = [position for position, count in enumerate(times) if count]
        best = np.where(usable[:, needed].any(axis=2).min(axis=1), 0.0, np.inf)
        for _ in range(_HALVINGS):
            multiplier = np.sqrt(low * high)
            value, layers = multiplier * self.layers, np.zeros(len(caps))
            for position in needed:
                count = times[position]
                reduced = (
                    priced[:, position] - multiplier.astype(np.float32)[:, None] * held[:, position]
                )
                least = reduced.argmin(axis=1)[:, None]
                value += count * np.take_along_axis(reduced, least, axis=1)[:, 0]
                layers += count * np.take_along_axis(held[:, position], least, axis=1)[:, 0]
            best = np.maximum(best, value)
            short = layers < self.layers
            low, high = np.where(short, multiplier, low), np.where(short, high, multiplier)
        return np.asarray(best * (1 - 1e-5))


def grids(costs: Costs, depth: int) -> Iterator[Grid]:
    """The grids of all depths that can hold the model."""
    for stages in range(1, depth + 1):
        tables = costs.tabulate(stages)
        if len(tables.batches):
            grid = _grid(costs.estimator, tables, costs.layers, len(costs.kinds))
            if len(grid.worth):
                yield grid


def _grid(estimator: BoundEstimator, tables: DepthCosts, layers: int, kinds: int) -> Grid:
    places = (ONLY,) if tables.depth == 1 else (FIRST, MIDDLE, LAST)
    starts = _interval_starts(tables.batches)
    ends = np.append(starts[1:], len(tables.batches)) - 1
    work = np.minimum.reduceat(tables.work / tables.batches[:, None], starts, axis=1)
    work = work.reshape(4, kinds, len(starts), 2, 2)[list(places)]
    rooms = tables.caps[:, starts].reshape(4, kinds, len(starts))[list(places)]
    period = _periods(estimator, tables, starts)
    found: list[tuple[Ints, Floats, Ints, Ints]] = []
    for index, start in enumerate(starts):
        room, pace = rooms[:, :, index], work[:, :, index]
        for share in range(len(_SHARES) - 1):
            caps, low = _levels(pace, room, share, tables.depth, layers)
            worth = 1 / (period[index, share] * low)
            least = np.full(len(low), tables.batches[start])
            found.append((caps, worth, least, np.full(len(low), tables.batches[ends[index]])))
    caps, worth, least, greatest = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Grid(tables.depth, layers, caps, worth * (1 + 1e-9), least, greatest)


def _interval_starts(batches: Ints) -> Ints:
    starts, ceiling = [], -np.inf
    for index, batch in enumerate(batches.tolist()):
        if batch > ceiling:
            starts.append(index)
            ceiling = batch * _BATCH_STEP
    return np.array(starts, dtype=np.int64)


def _periods(estimator: BoundEstimator, tables: DepthCosts, starts: Ints) -> Floats:
    """(intervals, shares): least period, per request and second of T.

    Within an interval of A / T, A and D are at least what its parts' corners say.
    """
    batches = tables.batches[:, None]
    least = np.full((len(starts), len(_SHARES) - 1), np.inf)
    for part in range(_PARTS):
        width = np.diff(_SHARES) / _PARTS
        low, high = _SHARES[:-1] + part * width, _SHARES[:-1] + (part + 1) * width
        period = estimator.period(batches, tables.depth, low * batches, (1 - high) * batches)
        least = np.minimum(least, np.minimum.reduceat(period / batches, starts, axis=0))
    return least


def _levels(pace: Floats, room: Ints, share: int, depth: int, layers: int) -> tuple[Ints, Floats]:
    """Caps at the upper and T at the lower end of every interval of T; pace (places, kinds, 2, 2).

    The intervals cover all T at which `depth` stages can hold the model; the last has no end.
    """
    prefill, decode = pace[..., 0, :], pace[..., 1, :]

    def caps_at(seconds: Floats) -> Ints:
        T = seconds[:, None, None]
        fits = room
        for limit, part in (
            (T * _SHARES[share + 1], prefill),
            (T * (1 - _SHARES[share]), decode),
            (T, prefill + decode),
        ):
            spare = limit * (1 + 1e-9) + 1e-25 - part[..., 1]
            count = np.floor(spare / np.maximum(part[..., 0], 1e-31))
            fits = np.minimum(fits, np.clip(count, 0, layers))
        return np.asarray(fits, dtype=np.int16)

    both = prefill + decode
    usable = room > 0
    if not usable.any():
        return np.zeros((0, *room.shape), dtype=np.int16), np.zeros(0)
    low = float((both[..., 0] + both[..., 1])[usable].min())
    high = float((both[..., 0] * room + both[..., 1])[usable].max()) / min(
        float(_SHARES[share + 1]), float(1 - _SHARES[share])
    )
    steps = int(np.ceil(np.log(max(high / low, 1.0)) / np.log(_STEP))) + 1
    edges = np.asarray(low * _STEP ** np.arange(steps + 1), dtype=np.float64)
    caps = caps_at(edges[1:])
    most = _most(caps, depth)
    first = int(np.searchsorted(most >= layers, True)) if (most >= layers).any() else len(most)
    last = min(first + _LEVELS, len(most))
    if first == len(most):
        return caps[:0], edges[:0]
    return (
        np.concatenate([caps[first:last], caps_at(np.array([edges[-1]]))]),
        edges[first : last + 1],
    )


def _most(caps: Ints, depth: int) -> Ints:
    """Most layers that `depth` stages hold."""
    best = caps.max(axis=2).astype(np.int64)
    if depth == 1:
        return np.asarray(best[:, 0])
    return np.asarray(best[:, 0] + best[:, 2] + (depth - 2) * best[:, 1])


def cheapest_stages(cell: Cell, prices: Floats, depth: int, layers: int) -> Sequence[int] | None:
    """The cheapest kinds, first and last included, that hold the model within a cell's caps.

    Dynamic programming over (stages, layers held).
    """
    places = [0] if depth == 1 else [0, *[1] * (depth - 2), 2]
    cost = np.full(layers + 1, np.inf)
    cost[0] = 0
    taken: list[Ints] = []
    held = np.arange(layers + 1)
    for place in places:
        caps = cell.caps[place].astype(np.int64)
        before = np.maximum(held[:, None] - caps, 0)
        options = np.where(caps > 0, cost[before] + prices, np.inf)
        taken.append(options.argmin(axis=1))
        cost = options.min(axis=1)
    if not np.isfinite(cost[layers]):
        return None
    chosen, left = [], layers
    for place, choice in zip(reversed(places), reversed(taken), strict=True):
        kind = int(choice[left])
        chosen.append(kind)
        left = max(0, left - int(cell.caps[place][kind]))
    return chosen


_GREED = np.geomspace(0.2, 50, 8)
"""What a layer may cost, relative to the mean price of a layer, when stages are picked greedily."""


def stages_at_hand(
    cell: Cell, prices: Floats, layers: int, resources: Resources
) -> Sequence[int] | None:
    """As `cheapest_stages` where instances are few: greedy, within what there is."""
    places = [0] if len(cell.caps) == 1 else [0, 2, *[1] * (cell.depth - 2)]
    caps = cell.caps.astype(np.float64)
    scale = float(prices.mean()) / max(float(caps.mean()), 1e-9)
    best: tuple[float, list[int]] | None = None
    for multiplier in _GREED * scale:
        left, held, chosen = resources.available.copy(), 0.0, list[int]()
        for place in places:
            fits = (resources.usage <= left + 1e-9).all(axis=1) & (caps[place] > 0)
            if not fits.any():
                break
            kind = int(np.where(fits, prices - multiplier * caps[place], np.inf).argmin())
            left, held = left - resources.usage[kind], held + caps[place][kind]
            chosen.append(kind)
        cost = float(prices[chosen].sum())
        if len(chosen) == len(places) and held >= layers and (best is None or cost < best[0]):
            best = cost, chosen
    return best[1] if best else None
