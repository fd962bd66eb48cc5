"""What came of it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from shuntserve_core.testing.chaos.client import Answer
from shuntserve_core.testing.chaos.disturbances import Disturbance

STALL_SECONDS = 5.0
"""A gap that ends so long after a disturbance at most is put down to it."""


@frozen
class Verdict:
    """Counts and gaps of a run."""

    streams: int
    failed: tuple[str, ...]
    different: tuple[str, ...]
    disturbances: Mapping[str, int]
    ordinary_gap: float
    """Median seconds between two events of a stream."""
    stalls: Mapping[str, tuple[float, float]]
    """Median and worst of the longest gap that a disturbance caused, by its kind, seconds."""

    @property
    def passed(self) -> bool:
        """Whether nothing was lost and nothing differs."""
        return not self.failed and not self.different


def judge(
    answers: Sequence[Answer],
    undisturbed: Mapping[str, Answer],
    disturbances: Sequence[Disturbance],
) -> Verdict:
    """Compare every stream with its undisturbed twin, and find the stalls."""
    failed = tuple(f"{a.asked.name}: {a.error or 'cut'}" for a in answers if not a.complete)
    different = tuple(
        a.asked.name for a in answers if a.complete and not a.same_as(undisturbed[a.asked.name])
    )
    gaps = [gap for answer in answers for _, gap in answer.gaps]
    return Verdict(
        streams=len(answers),
        failed=failed,
        different=different,
        disturbances=Counter(d.kind for d in disturbances),
        ordinary_gap=statistics.median(gaps) if gaps else 0.0,
        stalls=_stalls(answers, disturbances),
    )


def _stalls(
    answers: Sequence[Answer], disturbances: Sequence[Disturbance]
) -> dict[str, tuple[float, float]]:
    longest: dict[str, list[float]] = {}
    for index, disturbance in enumerate(disturbances):
        nexts = disturbances[index + 1].at if index + 1 < len(disturbances) else float("inf")
        end = min(disturbance.at + STALL_SECONDS, nexts)
        caused = [
            gap
            for answer in answers
            for when, gap in answer.gaps
            if when - gap < end and when > disturbance.at
        ]
        if caused:
            longest.setdefault(disturbance.kind, []).append(max(caused))
    return {kind: (statistics.median(v), max(v)) for kind, v in longest.items()}


def as_json(verdict: Verdict) -> dict[str, Any]:
    """For programs."""
    return {
        "passed": verdict.passed,
        "streams": verdict.streams,
        "failed": list(verdict.failed),
        "different": list(verdict.different),
        "disturbances": dict(verdict.disturbances),
        "ordinary_gap_seconds": verdict.ordinary_gap,
        "stall_seconds": {
            kind: {"median": median, "worst": worst}
            for kind, (median, worst) in verdict.stalls.items()
        },
    }
