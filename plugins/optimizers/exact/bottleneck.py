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


def layers_within(seconds: Floats, slope: Floats, base: Floats, high: Ints) -> Ints:
    """Most layers that take no longer than `seconds`, at most `high`; may be negative."""
    spare = seconds - base + _ROUNDING * np.abs(seconds)
    with np.errstate(divide="ignore", invalid="ignore"):
        count = np.floor(spare / slope)
    free = np.where(spare >= 0, np.inf, -1)
    fits = np.where(slope > 0, count, free)
    return np.asarray(np.minimum(np.maximum(fits, -1), high), dtype=np.int64)


def slowest_at_least(slope: Floats, base: Floats, shares: Shares, layers: int) -> Floats:
    """The least that the slowest stage must take, (n,): exact up to rounding.

    The answer is the time of some slot with some number of layers; for every slot the fewest
    layers at which everybody's share adds up are found by bisection.  Infinite where nothing fits.
    """
    count, low, high = shares.count, shares.low, shares.high
    present = count > 0
    floor = np.where(present, slope * low + base, 0).max(axis=1)
    least = np.where(present, low, 0)
    most = np.where(present, high, 0)
    lower, upper = least - 1, most
    for _ in range(int(np.ceil(np.log2(max(layers, 2)))) + 1):
        middle = (lower + upper + 1) // 2
        seconds = np.maximum(slope * middle + base, floor[:, None])
        total = np.zeros_like(middle)
        for slot in range(count.shape[1]):
            fits = layers_within(
                seconds, slope[:, slot, None], base[:, slot, None], most[:, slot, None]
            )
            total += count[:, slot, None] * np.maximum(fits, least[:, slot, None])
        enough = total >= layers
        upper = np.where(enough & (upper > lower + 1), middle, upper)
        lower = np.where(~enough & (upper > lower + 1), middle, lower)
    seconds = np.maximum(slope * upper + base, floor[:, None])
    # The greatest number of layers of a slot may still be too few for the others.
    total = np.zeros_like(upper)
    for slot in range(count.shape[1]):
        fits = layers_within(
            seconds, slope[:, slot, None], base[:, slot, None], most[:, slot, None]
        )
        total += count[:, slot, None] * np.maximum(fits, least[:, slot, None])
    found = np.where(present & (total >= layers), seconds, np.inf).min(axis=1)
    return np.where(shares.holds(layers), found, np.inf)


def capped(shares: Shares, slope: Floats, base: Floats, seconds: Floats) -> Shares:
    """The same shares where no stage may take longer than `seconds` (n,)."""
    fits = layers_within(seconds[:, None], slope, base, shares.high)
    return Shares(shares.count, shares.low, np.where(shares.count > 0, fits, shares.high))
