"""A pipeline's score from look-up tables, for thousands of pipelines at once.

An estimator's batch limits take few values: one for each kind of stage, position and number of
layers.  Here every limit is replaced by its rank among them, so that the work of a stage becomes a
table over ranks, and scoring pipelines needs nothing but indexing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shuntserve_core.interfaces.estimator import BoundEstimator, Floats, Ints, Position, Scores
from shuntserve_core.types import StageKind

_POSITIONS = [Position(first, last) for first in (False, True) for last in (False, True)]


def position(index: int, depth: int) -> Position:
    """Where stage `index` of `depth` stages stands."""
    return Position(index == 0, index == depth - 1)


class StageTables:
    """What an estimator says of stages on `kinds`, by rank of the pipeline's batch."""

    def __init__(self, estimator: BoundEstimator, kinds: Sequence[StageKind]) -> None:
        self.estimator = estimator
        self.kinds = tuple(kinds)
        limits = {
            place: np.array([estimator.batch_limit(kind, place) for kind in kinds])
            for place in _POSITIONS
        }
        self.batches: Ints = np.unique(np.append(np.ravel(list(limits.values())), 0))
        """Batch of each rank; rank 0 is the batch 0: infeasible."""
        self._ranks: dict[Position, Ints] = {
            place: np.searchsorted(self.batches, limit).astype(np.int32)
            for place, limit in limits.items()
        }
        self._work: dict[tuple[Position, int], Floats] = {}
        self._alone: dict[tuple[Position, int], Floats] = {}

    def ranks(self, place: Position) -> Ints:
        """Rank of the batch limit, shape (kinds, layers + 1)."""
        return self._ranks[place]

    def busy(self, place: Position, depth: int, kind: Ints, layers: Ints, rank: Ints) -> Floats:
        """Prefill and decode seconds of n stages in pipelines of `depth` stages: shape (n, 2)."""
        table = self._work_table(place, depth)
        rows = table.reshape(-1, 4).take(kind * len(self.batches) + rank, axis=0)
        seconds: Floats = rows[:, :2] * layers[:, None] + rows[:, 2:]
        return seconds

    def _work_table(self, place: Position, depth: int) -> Floats:
        """(kinds, ranks, 4): seconds a layer in prefill and decode, then the fixed ones."""
        if (place, depth) not in self._work:
            table = np.empty((len(self.kinds), len(self.batches), 4))
            batches = np.maximum(self.batches, 1)
            for index, kind in enumerate(self.kinds):
                work = self.estimator.stage_work(kind, place, depth, batches)
                table[index, :, 0] = work.prefill_layer
                table[index, :, 1] = work.decode_layer
                table[index, :, 2] = work.prefill_fixed
                table[index, :, 3] = work.decode_fixed
            self._work[place, depth] = table
        return self._work[place, depth]

    def alone(self, place: Position, depth: int, kind: Ints, layers: Ints) -> Floats:
        """Seconds that n stages add to the latency of a request that is alone: shape (n,)."""
        if (place, depth) not in self._alone:
            parts = [self.estimator.alone(kind, place, depth) for kind in self.kinds]
            self._alone[place, depth] = np.array(parts)
        rows = self._alone[place, depth][kind]
        seconds: Floats = rows[:, 0] * layers + rows[:, 1]
        return seconds

    def scores(self, choice: Ints, layers: Ints) -> Scores:
        """Score n pipelines of the same depth P; both arrays are (n, P), as for an estimator."""
        depth = choice.shape[1]
        places = [position(stage, depth) for stage in range(depth)]
        stages = list(zip(places, choice.T, layers.T, strict=True))
        limits = [self._ranks[place][kind, count] for place, kind, count in stages]
        rank = np.min(limits, axis=0)
        parts = [self.busy(place, depth, kind, count, rank) for place, kind, count in stages]
        prefill, decode = np.max(parts, axis=0).T
        alone = [self.alone(place, depth, kind, count) for place, kind, count in stages]
        fits, batch = rank > 0, np.maximum(self.batches[rank], 1)
        period = self.estimator.period(batch, depth, prefill, decode)
        ttft, tpot = self.estimator.latencies(batch, depth, prefill, decode)
        return Scores(
            throughput_rps=np.where(fits, batch / period, 0.0),
            batch=np.where(fits, batch, 0),
            latency=np.where(fits, np.sum(alone, axis=0), np.inf),
            ttft=np.where(fits, ttft, np.inf),
            tpot=np.where(fits, tpot, np.inf),
        )
