"""Groups of instances as pipelines: what HexGen's genetic search looks up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import inf

import numpy as np

from shuntserve_core.interfaces.estimator import Floats, Ints
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.planning.building import worth
from shuntserve_plugins.optimizers.common import Candidate, Pool
from shuntserve_plugins.optimizers.frontier import Limits, search
from shuntserve_plugins.optimizers.tables import StageTables

Group = tuple[int, ...]
"""Indices of the kinds of a pipeline's stages, in order."""

TOP_K = 5
MAX_STAGES = 24
"""Width and depth of the search that partitions a group's layers anew."""


class Units:
    """Instances and halves of them, as indices of a pool's kinds."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        index = {kind: row for row, kind in enumerate(pool.kinds)}
        self._half: dict[int, int] = {}
        for kind, row in index.items():
            half = index.get(kind._replace(tensor_parallel=kind.tensor_parallel // 2))
            if half is not None and kind.tensor_parallel % 2 == 0:
                self._half[row] = half
        self._whole = {half: unit for unit, half in self._half.items()}

    @property
    def can_halve(self) -> bool:
        """Whether there is anything to cut."""
        return bool(self._half)

    def whole(self) -> list[int]:
        """One unit an instance; halves where the model refuses the whole."""
        units = []
        for row in range(len(self._pool.kinds)):
            if row not in self._whole:
                need = self._pool.need[row]
                taken = need > 0
                units += [row] * int((self._pool.available[taken] // need[taken])[0])
        return units

    def halved(self, unit: int) -> list[int]:
        """Two halves, or the unit itself if it cannot be cut."""
        return [self._half[unit]] * 2 if unit in self._half else [unit]

    def joined(self, unit: int) -> int | None:
        """The whole of a half."""
        return self._whole.get(unit)

    def sort(self, units: Iterable[int]) -> Group:
        """Stages of a kind follow one another, in the order of the pool."""
        return tuple(sorted(units))


class Groups:
    """Remembers the pipeline of every group that was ever asked for."""

    def __init__(self, problem: Problem, pool: Pool) -> None:
        self.pool = pool
        self._problem = problem
        self._tables = StageTables(problem.estimator, pool.kinds)
        catalog = problem.cluster.catalog
        self._memory = np.array(
            [catalog[k.instance].gpu.memory_bytes * k.tensor_parallel for k in pool.kinds]
        )
        self._known: dict[Group, Candidate] = {}
        self._relayered: dict[Group, Candidate] = {}

    def most_replicas(self) -> int:
        """How often all memory together might hold the weights."""
        model = self._problem.estimator.model
        share = self.pool.need / np.maximum(self.pool.need.sum(axis=1, keepdims=True), 1)
        memory = (share.T * (self._memory / self.pool.need.sum(axis=1))).max(axis=1, initial=0)
        return int(memory @ self.pool.available / (model.layers * model.layer_bytes)) + 1

    def learn(self, groups: Iterable[Group]) -> None:
        """Score the groups that are new, those of equal depth together."""
        by_depth: dict[int, list[Group]] = defaultdict(list)
        for group in set(groups) - self._known.keys():
            by_depth[len(group)].append(group)
        total = self._problem.estimator.model.layers
        for depth, unknown in by_depth.items():
            choice = np.array(unknown)
            if depth > total:
                self._remember(unknown, choice, np.ones_like(choice), np.zeros(len(unknown)))
                continue
            layers = share_out(total, self._memory[choice])
            scores = self._tables.scores(choice, layers)
            self._remember(unknown, choice, layers, worth(self._problem.objective, scores))

    def _remember(
        self, groups: Sequence[Group], choice: Ints, layers: Ints, worths: Floats
    ) -> None:
        for row, group in enumerate(groups):
            stages = choice[row].tolist(), layers[row].tolist()
            self._known[group] = self.pool.candidate(*stages, float(worths[row]))

    def candidates(self, groups: Iterable[Group]) -> list[Candidate]:
        """The pipelines of groups that were learnt, layers by memory share."""
        return [self._known[group] for group in groups]

    def relayered(self, group: Group) -> Candidate:
        """The best pipeline over (some of) a group's units, in any order and with any layers."""
        if group not in self._relayered:
            self._relayered[group] = self._relayer(group)
        return self._relayered[group]

    def _relayer(self, group: Group) -> Candidate:
        counts = Counter(group)
        rows = list(counts)
        units = np.array([counts[row] for row in rows])
        pool = Pool(
            kinds=tuple(self.pool.kinds[row] for row in rows),
            available=units,
            need=np.eye(len(rows), dtype=np.int64),
            price=self.pool.price[rows],
            gpus=np.ones_like(units),
            instance_price=self.pool.price[rows],
        )
        limits = Limits(
            available=units,
            budget=inf,
            per_dollar=False,
            slo=self._problem.objective.slo,
            top_k=TOP_K,
            max_stages=min(len(group), MAX_STAGES),
            deadline=inf,
        )
        found = search(StageTables(self._problem.estimator, pool.kinds), pool, limits)
        pure = self._known[group]
        if not found or found[0].worth <= pure.worth:
            return pure
        index = {kind: row for row, kind in enumerate(self.pool.kinds)}
        choice = [index[kind] for kind, _ in found[0].stages]
        layers = [count for _, count in found[0].stages]
        return self.pool.candidate(choice, layers, found[0].worth)


def share_out(total: int, memory: Ints) -> Ints:
    """Layers in proportion to memory, at least one each: both arrays are (n, stages).

    The largest remainders are rounded up.  Where a share is less than a layer, every stage gets
    one layer first, and the rest is shared.
    """
    depth = memory.shape[1]
    share = memory / memory.sum(axis=1, keepdims=True)
    first = (total * share.min(axis=1, keepdims=True) < 1).astype(np.int64)
    exact = (total - first * depth) * share
    layers = exact.astype(np.int64)
    order = np.argsort(layers - exact, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    missing = total - first * depth - layers.sum(axis=1, keepdims=True)
    result: Ints = first + layers + (rank < missing)
    return result
