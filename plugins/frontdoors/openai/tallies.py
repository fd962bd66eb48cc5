"""Histograms that cost next to nothing to add to: one is added to for every token of a stream."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily


class Tally:
    """How many values fell in which bucket; `bounds` are the buckets' upper ends."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(
        self, name: str, text: str, labels: dict[str, str] | None = None
    ) -> HistogramMetricFamily:
        """As Prometheus wants it, under any name."""
        labels = labels or {}
        family = HistogramMetricFamily(name, text, labels=list(labels))
        bounds = [*map(str, map(float, self._bounds)), "+Inf"]
        buckets = zip(bounds, map(float, accumulate(self._counts)), strict=True)
        family.add_metric(list(labels.values()), list(buckets), self._sum)
        return family


def steps_1_2_5(most: int) -> Iterator[float]:
    """1, 2, 5, 10, 20, 50... up to `most`."""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale > most:
                return
            yield float(step * scale)
        scale *= 10
