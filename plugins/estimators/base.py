"""What bundled estimators share: from stages' busy seconds to the scores of pipelines."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from shuntserve_core.interfaces.estimator import Floats, Ints, Scores


class Schedule(Protocol):
    """The part of a `BoundEstimator` that knows how stages work together."""

    def period(self, batch: Ints, depth: int, prefill: Floats, decode: Floats) -> Floats:
        """Seconds for one batch."""
        ...

    def latencies(
        self, batch: Ints, depth: int, prefill: Floats, decode: Floats
    ) -> tuple[Floats, Floats]:
        """TTFT and TPOT in seconds."""
        ...


def combine(
    schedule: Schedule, batch: Ints, prefill: Floats, decode: Floats, latency: Floats
) -> Scores:
    """Score n pipelines of P stages.

    `batch` (n,) requests, 0 where infeasible; `prefill` and `decode` (n, P) busy seconds;
    `latency` (n,) seconds of one request alone.
    """
    depth = prefill.shape[1]
    fits = batch > 0
    slowest_prefill, slowest_decode = prefill.max(axis=1), decode.max(axis=1)
    served = np.maximum(batch, 1)
    period = schedule.period(served, depth, slowest_prefill, slowest_decode)
    ttft, tpot = schedule.latencies(served, depth, slowest_prefill, slowest_decode)
    return Scores(
        throughput_rps=np.where(fits, served / period, 0.0),
        batch=np.where(fits, batch, 0),
        latency=np.where(fits, latency, np.inf),
        ttft=np.where(fits, ttft, np.inf),
        tpot=np.where(fits, tpot, np.inf),
    )
