"""The time of an operator, and which resource it waits for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

BOUNDS = ("compute", "memory bandwidth", "communication", "overhead")
"""What can bound a stage, in the order of `Part`'s terms; `overhead` is launches, host, bubbles."""


class Part(NamedTuple):
    """Seconds of one operator, and of each resource by itself; scalars or arrays."""

    seconds: Any
    compute: Any = 0.0
    memory: Any = 0.0
    communication: Any = 0.0
    overhead: Any = 0.0

    def times(self, factor: Any) -> Part:
        """The operator run `factor` times."""
        return Part(*(term * factor for term in self))

    def plus(self, other: Part) -> Part:
        """Both, one after the other."""
        return Part(*(a + b for a, b in zip(self, other, strict=True)))


Parts = Mapping[str, Part]
"""Operators by name."""


def roofline(compute: Any, memory: Any) -> Part:
    """An operator that computes for `compute` and moves data for `memory` seconds.

    A plain roofline takes the greater of the two, as if they always overlapped; near the ridge they
    do not.  The norm (c³ + m³)^⅓ meets Vidur's profiles of Llama-2-70B's matrices on A100 80 GB,
    A40 and H100 with a median error of 5 % (tests/plugins/estimators/test_roofline_figures.py).
    """
    longer, shorter = np.maximum(compute, memory), np.minimum(compute, memory)
    ratio = shorter / np.maximum(longer, 1e-300)
    return Part(longer * np.cbrt(1 + ratio * ratio * ratio), compute, memory)


def streaming(seconds: Any) -> Part:
    """An operator that only moves data."""
    return Part(seconds, memory=seconds)


def message(seconds: Any) -> Part:
    """An operator that only sends."""
    return Part(seconds, communication=seconds)


def waiting(seconds: Any) -> Part:
    """Time in which neither computes nor moves anything."""
    return Part(seconds, overhead=seconds)


def total(parts: Parts) -> Any:
    """Seconds of all operators."""
    return sum(part.seconds for part in parts.values())


def scaled(parts: Parts, factor: Any) -> dict[str, Part]:
    """All operators run `factor` times."""
    return {name: part.times(factor) for name, part in parts.items()}


def merged(*groups: Parts) -> dict[str, Part]:
    """All groups one after the other, equal names added up."""
    result: dict[str, Part] = {}
    for group in groups:
        for name, part in group.items():
            result[name] = result[name].plus(part) if name in result else part
    return result


def bound_of(parts: Parts) -> str:
    """The resource that most of the time goes to: each operator counts for its greatest term."""
    spent = dict.fromkeys(BOUNDS, 0.0)
    for part in parts.values():
        terms = [float(term) for term in part[1:]]
        spent[BOUNDS[int(np.argmax(terms))]] += float(part.seconds)
    return max(BOUNDS, key=lambda name: spent[name])
