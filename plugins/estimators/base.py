"""What bundled estimators share: from stages' busy seconds to the scores of pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from shuntserve_core.interfaces.estimator import Floats, Ints, Position, Scores
from shuntserve_core.types import Estimate, ModelSpec, StageEstimate, StageKind

Stages = Sequence[tuple[StageKind, int]]
"""A pipeline: what each stage is on, and its layers."""


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


class Detailed(Protocol):
    """The part of a `BoundEstimator` that can say more of one pipeline."""

    @property
    def model(self) -> ModelSpec:
        """The model."""
        ...

    def scores(self, kinds: Sequence[StageKind], choice: Ints, layers: Ints) -> Scores:
        """As `BoundEstimator.scores`."""
        ...

    def stage_estimate(self, stages: Stages, index: int, batch: int) -> StageEstimate:
        """One stage of a pipeline with so many requests in flight."""
        ...

    def kv_blocks(self, batch: int) -> int:
        """Blocks of KV cache that so many requests take."""
        ...

    def missing_bytes(self, kind: StageKind, position: Position, layers: int) -> float:
        """What a stage that holds no request lacks, over all its GPUs."""
        ...


def estimate_pipeline(bound: Detailed, stages: Stages) -> Estimate:
    """One pipeline with its breakdown by stage and operator."""
    kinds = [kind for kind, _ in stages]
    layers = np.array([[count for _, count in stages]])
    scores = bound.scores(kinds, np.arange(len(kinds))[None, :], layers)
    batch = int(scores.batch[0])
    parts = tuple(
        bound.stage_estimate(stages, index, max(batch, 1)) for index in range(len(stages))
    )
    return Estimate(
        throughput_rps=float(scores.throughput_rps[0]),
        batch=batch,
        kv_blocks=bound.kv_blocks(batch),
        ttft=float(scores.ttft[0]),
        tpot=float(scores.tpot[0]),
        latency=float(scores.latency[0]),
        stages=parts,
        reason="" if batch else _reason(bound, stages, parts),
    )


def position_of(index: int, depth: int) -> Position:
    """Where a stage is in a pipeline of `depth` stages."""
    return Position(index == 0, index == depth - 1)


def _reason(bound: Detailed, stages: Stages, parts: Sequence[StageEstimate]) -> str:
    """Why the first stage that holds no request does not."""
    for index, ((kind, layers), part) in enumerate(zip(stages, parts, strict=True)):
        if part.batch_limit:
            continue
        name = f"stage {index + 1} ({kind.instance}/{kind.tensor_parallel})"
        refused = bound.model.refuse_tensor_parallel(kind.tensor_parallel)
        if refused:
            return f"{name}: {refused}"
        missing = bound.missing_bytes(kind, position_of(index, len(stages)), layers)
        return f"{name}: {layers} layers need {max(missing, 1):,.0f} bytes more"
    return ""
