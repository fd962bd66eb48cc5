"""What the searches share: the pool that they draw from, and objectives that they refuse."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from attrs import frozen

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.estimator import Floats, Ints
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.types import InstanceType, StageKind

Stages = tuple[tuple[StageKind, int], ...]
"""A pipeline before it is estimated: (kind, layers) in order."""


def require_objective(problem: Problem, optimizer: str, kinds: Collection[str]) -> None:
    """Refuse an objective that an optimizer cannot follow, naming those that can."""
    kind = problem.objective.kind
    if kind not in kinds:
        raise UserError(
            f"the optimizer {optimizer!r} cannot follow the objective {kind!r}",
            where="objective.kind",
            remedy='use the optimizer "exact" or "beam-search"; '
            f"{optimizer!r} follows: {', '.join(sorted(kinds))}",
        )


def degrees(instance: InstanceType, *, split: bool) -> tuple[int, ...]:
    """Tensor-parallel degrees of stages on all of an instance, or on part of it.

    Each degree divides the next larger one: then any stages that take no more GPUs than there
    are can be laid out on the instances.
    """
    chain = [instance.gpu_count]
    for degree in reversed(instance.tensor_parallel_degrees) if split else ():
        if degree < chain[-1] and chain[-1] % degree == 0:
            chain.append(degree)
    return tuple(chain)


@frozen
class Pool:
    """What a search draws from: kinds of stages, and the GPUs that they take."""

    kinds: tuple[StageKind, ...]
    available: Ints
    """GPUs of each instance type."""
    need: Ints
    """GPUs that a stage of each kind takes: shape (kinds, instance types), one non-zero a row."""
    price: Floats
    """$ per hour of a stage of each kind: the instance's, by its share of GPUs."""
    gpus: Ints
    """GPUs of one instance of each type."""
    instance_price: Floats
    """$ per hour of one instance of each type."""

    @classmethod
    def of(cls, problem: Problem, *, split: bool) -> Pool:
        """Everything that is offered and that the model does not refuse."""
        offers = [offer for offer in problem.cluster.offers if offer.count]
        rows = [
            (index, degree)
            for index, offer in enumerate(offers)
            for degree in degrees(offer.instance, split=split and not problem.whole_instances)
            if not problem.estimator.model.refuse_tensor_parallel(degree)
        ]
        gpus = np.array([offer.instance.gpu_count for offer in offers], dtype=np.int64)
        prices = np.array([offer.price for offer in offers], dtype=np.float64)
        need = np.zeros((len(rows), len(offers)), dtype=np.int64)
        for row, (index, degree) in enumerate(rows):
            need[row, index] = degree
        return cls(
            kinds=tuple(StageKind(offers[i].instance.name, degree) for i, degree in rows),
            available=gpus * np.array([offer.count for offer in offers], dtype=np.int64),
            need=need,
            price=np.array([prices[i] * degree / gpus[i] for i, degree in rows]),
            gpus=gpus,
            instance_price=prices,
        )

    def used(self, pipelines: Sequence[Stages]) -> Ints:
        """GPUs of each type that pipelines take."""
        total = np.zeros_like(self.available)
        index = {kind: row for row, kind in enumerate(self.kinds)}
        for stages in pipelines:
            for kind, _ in stages:
                total += self.need[index[kind]]
        return total

    def cost(self, used: Ints) -> float:
        """$ per hour of the instances that these GPUs are part of."""
        instances = -(-used // self.gpus)
        return float(instances @ self.instance_price)
