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
_BELOW = 1 - 4e-9
"""Takes a lower bound safely below rounding; more than the slack above."""
_NEWTON_STEPS = 2
_ROUGH_STEPS = 4
"""Steps after which a lower bound is good enough."""
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

    The answer is the time of some slot with some number of layers.  From a lower bound, these
    times are tried one after the other.  Infinite where nothing fits.
    """
    bounds = _Bounds.of(slope, base, shares)
    seconds = bounds.least
    start = bounds.roughly(layers) * _BELOW
    seconds = np.where(bounds.held(seconds) >= layers, seconds, np.maximum(seconds, start))
    found = np.full(len(slope), np.inf)
    live = np.flatnonzero(shares.holds(layers))
    while len(live):
        now, at = bounds.pick(live), seconds[live]
        fits = now.fits(at)
        enough = (now.count * fits).sum(axis=1) >= layers
        found[live[enough]] = at[enough]
        following = np.where(fits < now.most, now.slope * (fits + 1) + now.base, np.inf)
        at = following.min(axis=1)
        more = ~enough & np.isfinite(at)
        live = live[more]
        seconds[live] = at[more]
    return found


def slowest_roughly(slope: Floats, base: Floats, shares: Shares, layers: int) -> Floats:
    """A lower bound on `slowest_at_least`, (n,), for a fraction of its cost."""
    return _Bounds.of(slope, base, shares).roughly(layers) * _BELOW


@frozen(eq=False)
class _Bounds:
    """Slots as floats, the missing ones emptied; all (n, slots) but `least`."""

    slope: Floats
    base: Floats
    count: Floats
    low: Floats
    most: Floats
    least: Floats
    """(n,): seconds that the stages take with the fewest layers."""

    @classmethod
    def of(cls, slope: Floats, base: Floats, shares: Shares) -> _Bounds:
        present = shares.count > 0
        low = np.where(present, shares.low, 0).astype(np.float64)
        most = np.maximum(np.where(present, shares.high, 0), low)
        least = np.where(present, slope * low + base, 0).max(axis=1)
        slope = np.maximum(slope, _NOTHING / _MANY)
        return cls(slope, base, shares.count.astype(np.float64), low, most, least)

    def pick(self, rows: Ints) -> _Bounds:
        """Some of the pipelines."""
        return _Bounds(
            self.slope[rows],
            self.base[rows],
            self.count[rows],
            self.low[rows],
            self.most[rows],
            self.least[rows],
        )

    def fits(self, seconds: Floats) -> Floats:
        """Layers of each stage that take no longer."""
        fits = layers_within(seconds[:, None], self.slope, self.base)
        return np.asarray(np.minimum(np.maximum(fits, self.low), self.most))

    def held(self, seconds: Floats) -> Floats:
        """Layers of all stages."""
        return np.asarray(np.einsum("ns,ns->n", self.count, self.fits(seconds)))

    def roughly(self, layers: int) -> Floats:
        """A lower bound on the slowest stage's seconds, up to rounding.

        First with fractions of layers: that is concave in the seconds, so the steps of Newton's
        method stay below.  Whole layers are fewer by one for each stage at most, and bisection
        within that much is closer.
        """
        rate = self.count / self.slope
        total = rate.sum(axis=1)
        low = np.maximum(self.least, (layers + (rate * self.base).sum(axis=1)) / total)
        for _ in range(_NEWTON_STEPS):
            fits = (low[:, None] - self.base) / self.slope
            free = fits < self.most
            missing = layers - (self.count * np.minimum(fits, self.most)).sum(axis=1)
            total = np.where(free, rate, 0).sum(axis=1)
            with np.errstate(divide="ignore", invalid="ignore"):
                low = np.where(total > 0, low + np.maximum(missing, 0) / total, low)
        with np.errstate(divide="ignore"):
            width = np.where(total > 0, self.count.sum(axis=1) / total, 0)
        for _ in range(_ROUGH_STEPS):
            width = width / 2
            low = np.where(self.held(low + width) >= layers, low, low + width)
        return np.asarray(low)


def capped(shares: Shares, slope: Floats, base: Floats, seconds: Floats) -> Shares:
    """The same shares where no stage may take longer than `seconds` (n,)."""
    fits = np.clip(layers_within(seconds[:, None], slope, base), -1, shares.high)
    high = np.where(shares.count > 0, fits, shares.high).astype(np.int64)
    return Shares(shares.count, shares.low, high)
