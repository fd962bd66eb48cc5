"""The time of an operator, and which resource it waits for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

SHARPNESS = 2.5
"""How sharply an operator turns from bandwidth-bound to compute-bound.

A plain roofline takes the greater of the two times, as if they always overlapped; near the ridge
they do not.  The norm (c^p + m^p)^(1/p) with p = 2.5 meets Vidur's profiles of Llama-2-70B's four
matrices (A100 80 GB and A40, 1 to 4,096 tokens) within 10 %; p = ∞ is up to 25 % too fast there.
"""

BOUNDS = ("compute", "memory bandwidth", "communication", "overhead")
"""What can bound a stage, in the order of `Part`'s terms."""


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
    """An operator that computes for `compute` and moves data for `memory` seconds."""
    longer, shorter = np.maximum(compute, memory), np.minimum(compute, memory)
    ratio = shorter / np.maximum(longer, 1e-300)
    bent = ratio * ratio * np.sqrt(ratio)  # ratio ** SHARPNESS, faster
    return Part(longer * (1 + bent) ** (1 / SHARPNESS), compute, memory)


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
