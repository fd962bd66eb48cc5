"""Least outstanding work: tokens still to come, over throughput."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define

from shuntserve_core.interfaces.balancer import Candidate


@define
class LeastOutstanding:
    """For requests of very different lengths, which round-robin spreads badly."""

    def pick(self, candidates: Sequence[Candidate]) -> str:
        """Where the wait is shortest; the fastest of idle ones."""
        return min(candidates, key=_wait).name

    def forget(self, name: str) -> None:
        """Keeps nothing."""


def _wait(candidate: Candidate) -> float:
    throughput = candidate.throughput
    return (candidate.tokens + 1) / throughput if throughput > 0 else float("inf")
