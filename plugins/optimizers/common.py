"""What the searches share: the pool that they draw from, and choosing by the objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf

import numpy as np
from attrs import frozen

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.estimator import Floats, Ints
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.planning.refusal import explain_no_pipeline
from shuntserve_core.types import InstanceType, Objective, StageKind

Stages = tuple[tuple[StageKind, int], ...]
"""A pipeline before it is estimated: (kind, layers) in order."""

ROUNDING = 1e-9
"""Relative difference below which two rates or costs are the same."""
_ALMOST = 1 - ROUNDING
FREE = 1e-6
"""$ per hour that anything is taken to cost at least, so that instances may be free."""


@frozen
class Candidate:
    """A pipeline that could be used."""

    stages: Stages
    worth: float
    """Requests per second after the SLO, as in `placing.worth`."""
    cost: float
    """$ per hour of its GPUs, each being its share of an instance."""
    used: Ints
    """GPUs of each instance type of the pool."""

    @property
    def efficiency(self) -> float:
        """Requests per second and $/h."""
        return self.worth / max(self.cost, FREE)


Degrees = Callable[[InstanceType], Sequence[int]]
"""Tensor-parallel degrees that a search considers on an instance type.

Each must divide the next larger one: then any stages that take no more GPUs than there are can be
laid out on the instances."""


def whole(instance: InstanceType) -> Sequence[int]:
    """Stages take all GPUs."""
    return (instance.gpu_count,)


def parts(instance: InstanceType) -> Sequence[int]:
    """Stages take all GPUs, or parts down to one."""
    chain = [instance.gpu_count]
    for degree in reversed(instance.tensor_parallel_degrees):
        if degree < chain[-1] and chain[-1] % degree == 0:
            chain.append(degree)
    return chain


def halves(instance: InstanceType) -> Sequence[int]:
    """Stages take all GPUs, or half of them."""
    half, odd = divmod(instance.gpu_count, 2)
    return (instance.gpu_count,) if odd else (instance.gpu_count, half)


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
    def of(cls, problem: Problem, degrees: Degrees = whole) -> Pool:
        """Everything that is offered and that the model does not refuse.

        Where the problem demands whole instances, `degrees` is not asked.  Raises `UserError`
        where nothing is left.
        """
        if problem.whole_instances:
            degrees = whole
        offers = [offer for offer in problem.cluster.offers if offer.count]
        rows = [
            (index, degree)
            for index, offer in enumerate(offers)
            for degree in degrees(offer.instance)
            if not problem.estimator.model.refuse_tensor_parallel(degree)
        ]
        if not rows:
            raise explain_no_pipeline(problem)
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

    def candidate(self, choice: Sequence[int], layers: Sequence[int], worth: float) -> Candidate:
        """A pipeline of stages on the kinds with these indices."""
        rows = list(choice)
        stages = tuple((self.kinds[k], int(n)) for k, n in zip(rows, layers, strict=True))
        cost = float(self.price[rows].sum())
        return Candidate(stages, float(worth), cost, self.need[rows].sum(axis=0))

    def used(self, chosen: Iterable[Candidate]) -> Ints:
        """GPUs of each type that pipelines take."""
        total = np.zeros_like(self.available)
        for candidate in chosen:
            total += candidate.used
        return total

    def cost(self, used: Ints) -> float:
        """$ per hour of the instances that these GPUs are part of."""
        instances = -(-used // self.gpus)
        return float(instances @ self.instance_price)


def choose(pool: Pool, objective: Objective, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those of some pipelines that can all be used together which serve an objective best.

    The most efficient come first.  Raises `UserError` where a demanded rate is not reached.
    """
    ordered = sorted((c for c in candidates if c.worth > 0), key=lambda c: -c.efficiency)
    budget = inf if objective.budget is None else objective.budget * (1 + ROUNDING)
    if objective.kind == "cost":
        return _cheapest(pool, ordered, demanded_rate(objective), budget)
    chosen: list[Candidate] = []
    for candidate in ordered:
        best = chosen[0].efficiency if chosen else 0.0
        if objective.kind == "throughput-per-dollar" and candidate.efficiency < best * _ALMOST:
            break
        if pool.cost(pool.used([*chosen, candidate])) <= budget:
            chosen.append(candidate)
    return chosen


def _cheapest(
    pool: Pool, ordered: Sequence[Candidate], rate: float, budget: float
) -> list[Candidate]:
    """The cheapest way to a rate that ends a run of the most efficient ones with any other."""
    if not ordered:
        return []
    worth = np.array([candidate.worth for candidate in ordered])
    used = np.array([candidate.used for candidate in ordered])
    cheapest, end = budget, (-1, -1)
    for first in range(len(ordered)):
        missing = rate - worth[:first].sum()
        last = first + np.flatnonzero(worth[first:] >= missing * _ALMOST)
        instances = -(-(used[:first].sum(axis=0) + used[last]) // pool.gpus)
        costs = instances @ pool.instance_price
        if len(last) and costs.min() < cheapest:
            cheapest, end = costs.min(), (first, int(last[costs.argmin()]))
    if end == (-1, -1):
        raise rate_not_reached(rate, worth.sum())
    return [*ordered[: end[0]], ordered[end[1]]]


def demanded_rate(objective: Objective) -> float:
    """The rate of the objective `cost`.  Raises `UserError` where it is missing."""
    if objective.rate is None:
        raise UserError(
            "the objective 'cost' needs a rate",
            where="objective.rate",
            remedy="give the requests per second that are demanded",
        )
    return objective.rate


def rate_not_reached(rate: float, reached: float) -> UserError:
    """The error of a search that found too little throughput."""
    return UserError(
        f"only {reached:.4g} of the demanded {rate:g} requests/s are reached",
        where="objective.rate",
        remedy="offer more instances, raise the budget, demand less, or use another optimizer",
    )
