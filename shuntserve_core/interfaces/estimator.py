"""What predicts a pipeline's behaviour: the interface of every optimizer and the simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shuntserve_core.types import (
    EngineFacts,
    Estimate,
    InstanceType,
    ModelSpec,
    StageKind,
    Workload,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Position(NamedTuple):
    """Where in a pipeline a stage stands: the first embeds, the last computes logits."""

    first: bool
    last: bool


class StageWork(NamedTuple):
    """Seconds that a stage is busy with one whole pipeline batch; arrays over batch sizes.

    A stage of n layers takes `prefill_layer * n + prefill_fixed` for the prefill of every request
    of the batch, and `decode_layer * n + decode_fixed` for all their decode steps.  An estimator
    that does not tell the two phases apart reports everything as prefill.
    """

    prefill_layer: Floats
    prefill_fixed: Floats
    decode_layer: Floats
    decode_fixed: Floats


class Scores(NamedTuple):
    """What optimizers compare pipelines by; arrays over pipelines.  Infeasible ones are all 0,
    with latencies infinite."""

    throughput_rps: Floats
    batch: Ints
    latency: Floats
    """Seconds, one request alone."""
    ttft: Floats
    tpot: Floats


class BoundEstimator(Protocol):
    """An estimator that knows the model, the workload and the instance types.

    For every pipeline, `scores` must equal what follows from the parts:

    * batch G = least `batch_limit` over the stages, 0 being infeasible;
    * A and D = greatest prefill and decode seconds over the stages, by `stage_work` at G;
    * throughput = G / `period(G, depth, A, D)`;
    * TTFT and TPOT = `latencies(G, depth, A, D)`;
    * latency = sum over the stages of `alone`: seconds a layer times layers, plus fixed seconds.

    `batch_limit` must not grow with layers, work must not be negative, and neither `period` nor
    `latencies` may shrink as A or D grows.  `period` has no seconds of its own: when A and D are
    scaled by the same factor, so is it (fixed overheads belong into `stage_work`).  Exact
    optimizers rely on it for their bounds.
    """

    model: ModelSpec
    workload: Workload
    catalog: Mapping[str, InstanceType]

    def batch_limit(self, kind: StageKind, position: Position) -> Ints:
        """Requests whose KV cache fits a stage, by its number of layers: shape (layers + 1,).

        Entry 0 repeats entry 1.  All are 0 for a tensor-parallel degree that the model refuses.
        """
        ...

    def stage_work(self, kind: StageKind, position: Position, depth: int, batch: Ints) -> StageWork:
        """Work of a stage in a pipeline of `depth` stages, for each pipeline batch in `batch`."""
        ...

    def period(self, batch: Ints, depth: int, prefill: Floats, decode: Floats) -> Floats:
        """Seconds that a pipeline needs for one batch, given its slowest stage's busy seconds.

        `batch`, `prefill` and `decode` are broadcast against each other.
        """
        ...

    def latencies(
        self, batch: Ints, depth: int, prefill: Floats, decode: Floats
    ) -> tuple[Floats, Floats]:
        """TTFT and TPOT in seconds at a full batch; arguments as for `period`."""
        ...

    def alone(self, kind: StageKind, position: Position, depth: int) -> tuple[float, float]:
        """What a stage adds to the latency of a request that is alone: (a layer, fixed), s."""
        ...

    def scores(self, kinds: Sequence[StageKind], choice: Ints, layers: Ints) -> Scores:
        """Score n pipelines of the same depth P at once.

        `choice` (n, P) indexes `kinds`; `layers` (n, P) sums to the model's layers in each row.
        """
        ...

    def estimate(self, stages: Sequence[tuple[StageKind, int]]) -> Estimate:
        """One pipeline, (kind, layers) in order, with its breakdown."""
        ...


class Estimator(Protocol):
    """A way to predict; its attrs fields are the options of the `[estimator]` table."""

    def bind(
        self, model: ModelSpec, workload: Workload, catalog: Mapping[str, InstanceType]
    ) -> BoundEstimator:
        """Fix what does not change during a search."""
        ...


@runtime_checkable
class EngineAware(Estimator, Protocol):
    """An estimator that predicts an engine by what the engine's plugin says of it."""

    def for_engine(self, facts: EngineFacts, *, firmly: bool = True) -> Estimator:
        """The same estimator for that engine.

        Raises `UserError` where an option of its own contradicts the engine.  Not `firmly`, where
        nobody has chosen the engine: the options then describe another one, to be studied.
        """
        ...
