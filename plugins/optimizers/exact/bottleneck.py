"""Sharing layers among stages so that the slowest is as fast as can be, for many pipelines at once.

A stage in slot s that holds l layers takes `slope·l + base` seconds.  Stages of the same slot are
counted, not repeated: arrays are (n pipelines, slots), padded with slots of count 0.
"""

from __future__ import annotations

import numpy as np
from attrs import frozen

from shuntserve_core.interfaces.estimator import Floats, Ints

_ROUNDING = 1e-9
"""Relative slack when seconds are turned back into layers."""
_ROUGH_STEPS = 10
"""Halvings after which a lower bound is good enough."""
_NOTHING = 1e-25
"""Seconds that are no time at all."""
_MANY = 1e6
"""More layers than any model has: what takes no time at all has no other limit."""


@frozen(eq=False)
class Shares:
    """How many stages each slot has, and how few and many layers each of them may hold."""

    count: Ints
    low: Ints
    high: Ints

    def pick(self, rows: Ints) -> Shares:
        """Some of the pipelines."""
        return Shares(self.count[rows], self.low[rows], self.high[rows])

    def holds(self, layers: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whether any split of `layers` is left, for each pipeline."""
        open_slots = ((self.low <= self.high) | (self.count == 0)).all(axis=1)
        least = (self.count * self.low).sum(axis=1)
        most = (self.count * self.high).sum(axis=1)
        return np.asarray(open_slots & (least <= layers) & (most >= layers))


def layers_within(seconds: Floats, slope: Floats, base: Floats) -> Floats:
    """Most layers that take no longer than `seconds`: whole numbers, negative where none do."""
    spare = seconds * (1 + _ROUNDING) + _NOTHING - base
    return np.asarray(np.floor(spare / np.maximum(slope, _NOTHING / _MANY)))


def slowest_at_least(slope: Floats, base: Floats, shares: Shares, layers: int) -> Floats:
    """The least that the slowest stage must take, (n,): exact up to rounding.

    The answer is the time of some slot with some number of layers; for every slot the fewest
    layers at which everybody's share adds up are found by bisection.  Infinite where nothing fits.
    """
    present = shares.count > 0
    least = np.where(present, shares.low, 0)
    most = np.where(present, shares.high, 0)
    floor = np.where(present, slope * least + base, 0).max(axis=1)[:, None]
    slope_of, base_of = slope[:, None, :], base[:, None, :]
    least_of, most_of = least[:, None, :], np.maximum(most, least)[:, None, :]
    count = shares.count.astype(np.float64)[:, :, None]

    def total(own: Ints) -> Floats:
        """Layers that all stages hold while those of each slot in turn hold `own`."""
        seconds = np.maximum(slope * own + base, floor)
        fits = layers_within(seconds[:, :, None], slope_of, base_of)
        return np.asarray(np.clip(fits, least_of, most_of) @ count)[:, :, 0]

    lower, upper = least - 1, most
    for _ in range(int(most.max(initial=1)).bit_length() + 1):
        middle = (lower + upper + 1) // 2
        enough = total(middle) >= layers
        upper = np.where(enough, middle, upper)
        lower = np.where(enough, lower, np.minimum(middle, upper - 1))
    # The greatest number of layers of a slot may still be too few for the others.
    seconds = np.maximum(slope * upper + base, floor)
    found = np.where(present & (total(upper) >= layers), seconds, np.inf).min(axis=1)
    return np.where(shares.holds(layers), found, np.inf)


def slowest_roughly(slope: Floats, base: Floats, shares: Shares, layers: int) -> Floats:
    """A lower bound on `slowest_at_least`, (n,), for a fraction of its cost."""
    present = shares.count > 0
    count = np.where(present, shares.count, 0).astype(np.float64)
    least = np.where(present, shares.low, 0).astype(np.float64)
    most = np.where(present, shares.high, 0).astype(np.float64)
    low = np.where(present, slope * least + base, 0).max(axis=1)
    high = np.where(present, slope * most + base, 0).max(axis=1)
    for _ in range(_ROUGH_STEPS):
        middle = (low + high) / 2
        fits = np.clip(layers_within(middle[:, None], slope, base), least, most)
        enough = np.einsum("ns,ns->n", count, fits) >= layers
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.asarray(low)


def capped(shares: Shares, slope: Floats, base: Floats, seconds: Floats) -> Shares:
    """The same shares where no stage may take longer than `seconds` (n,)."""
    fits = np.clip(layers_within(seconds[:, None], slope, base), -1, shares.high)
    high = np.where(shares.count > 0, fits, shares.high).astype(np.int64)
    return Shares(shares.count, shares.low, high)
