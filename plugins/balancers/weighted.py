"""Smooth weighted round-robin: in proportion to throughput, and evenly spread in time."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from shuntserve_core.interfaces.balancer import Candidate

_LEAST_SHARE = 1e-3
"""Of the greatest throughput: what a pipeline gets for which nothing was estimated."""


@define
class WeightedRoundRobin:
    """As in nginx: each pick, all gain credit by weight, and the richest pays for all.

    Credit belongs to the pipeline's name, so it survives others coming and going, and a pipeline
    that is full neither gains nor loses: its share goes to the others until it has room again.
    """

    _credit: dict[str, float] = field(factory=dict, init=False)

    def pick(self, candidates: Sequence[Candidate]) -> str:
        """The richest; the first of equals."""
        credit = self._credit
        floor = max(c.throughput for c in candidates) * _LEAST_SHARE or 1.0
        total, best, most = 0.0, "", 0.0
        for candidate in candidates:
            weight = max(candidate.throughput, floor)
            total += weight
            wealth = credit[candidate.name] = credit.get(candidate.name, 0.0) + weight
            if not best or wealth > most:
                best, most = candidate.name, wealth
        credit[best] = most - total
        return best

    def forget(self, name: str) -> None:
        """Its credit goes with it."""
        self._credit.pop(name, None)
