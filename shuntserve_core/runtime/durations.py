"""How long things took, in buckets: what histograms are drawn from."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from attrs import define, field

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets, seconds; one more bucket holds what is longer."""


@define
class Durations:
    """Counts of one kind."""

    counts: list[int] = field(factory=lambda: [0] * (len(BOUNDS) + 1))
    seconds: float = 0.0
    """Sum."""

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def as_json(self) -> dict[str, Any]:
        """`counts` of each bucket, and the `seconds` of all together."""
        return {"bounds": list(BOUNDS), "counts": list(self.counts), "seconds": self.seconds}


@define
class Stopwatch:
    """The dispatcher's observer in a running cluster."""

    stalls: dict[str, Durations] = field(factory=dict)
    """By kind of migration: from the order to move until the next token."""
    waits: Durations = field(factory=Durations)
    """In the queue, until a request is sent to its first engine."""
    switches: dict[str, Durations] = field(factory=dict)
    """By part of a switch, as in `runtime.switching`."""

    def stalled(self, kind: str, seconds: float) -> None:
        """A migrated request has its next token."""
        self.stalls.setdefault(kind, Durations()).add(seconds)

    def queued(self, seconds: float) -> None:
        """A request was sent to an engine."""
        self.waits.add(seconds)

    def switched(self, part: str, seconds: float) -> None:
        """A part of a switch from one engine to another is over."""
        self.switches.setdefault(part, Durations()).add(seconds)

    def as_json(self) -> Mapping[str, Any]:
        """For `status` and `/metrics`."""
        stalls = {kind: durations.as_json() for kind, durations in self.stalls.items()}
        switches = {part: durations.as_json() for part, durations in self.switches.items()}
        return {"stall": stalls, "queue": self.waits.as_json(), "switch": switches}
