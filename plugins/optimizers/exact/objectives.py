"""From an objective to searches: one for throughput and cost, several for a ratio."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from attrs import evolve

from shuntserve_core.interfaces.estimator import Ints
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.types import Objective, StageKind
from shuntserve_plugins.optimizers.exact.answer import Answer
from shuntserve_plugins.optimizers.exact.costs import Costs
from shuntserve_plugins.optimizers.exact.enumerated import Enumerated
from shuntserve_plugins.optimizers.exact.generated import Generated
from shuntserve_plugins.optimizers.exact.master import Master
from shuntserve_plugins.optimizers.exact.multisets import Resources, count_multisets, multisets
from shuntserve_plugins.optimizers.exact.rivals import rival_placements

_OF_THE_LIMIT = 0.9
"""Share of the time limit for the search; the rest is for building the placement."""

_AT_LEAST = 0.4
"""Share of `seconds` that is left for generating sets when other searches have taken theirs."""


def search(
    problem: Problem, kinds: Sequence[StageKind], depth: int, most: int, seconds: float
) -> Answer:
    """Best placement for the problem's objective, with stages of `kinds`.

    Lists sets of up to `depth` stages if there are no more than `most`, or generates them for
    `seconds`.
    """
    start = time.monotonic()
    deadline = start + problem.time_limit * _OF_THE_LIMIT
    costs = Costs(problem.estimator, kinds)
    resources = Resources(problem.cluster, kinds)
    depth = min(depth, costs.layers)
    master = Master(resources, problem.objective)
    finder: Enumerated | Generated
    if count_multisets(resources, depth) <= most:
        finder = Enumerated.of(costs, master, multisets(resources, depth), deadline)
    else:
        rivals = list(rival_placements(problem, depth))
        spent = time.monotonic() - start
        end = start + max(seconds, spent + _AT_LEAST * seconds)
        finder = Generated.of(costs, master, depth, min(deadline, end))
        for placement in rivals:
            finder.begin_with(placement)
    if finder.hopeless:
        return Answer((), 0.0, 0.0)
    if problem.objective.kind == "throughput-per-dollar":
        return _ratio(problem, finder)
    choice, chosen, bound = finder.run()
    pipelines = _pipelines(finder, chosen)
    if problem.objective.kind == "throughput":
        return Answer(pipelines, choice.value, bound)
    if pipelines:
        return Answer(pipelines, -choice.value, -bound)
    return Answer((), np.inf, np.inf, _reachable(problem.objective, finder))


def _ratio(problem: Problem, finder: Enumerated | Generated) -> Answer:
    """Dinkelbach: maximise worth − r·cost; r is the best ratio once nothing is above 0.

    If no placement is worth more than r·cost + surplus, and none costs less than c, no ratio is
    above r + surplus / c.
    """
    ratio = 0.0
    cheapest = min(offer.price for offer in problem.cluster.offers if offer.count)
    known: Ints = np.zeros(0, dtype=np.int64)
    while True:
        finder.master = finder.master.at(ratio)
        _, chosen, bound = finder.run(0.0, first=ratio == 0)
        if not len(chosen):
            surplus = max(bound, 0.0)
            return Answer(_pipelines(finder, known), ratio, ratio + surplus / cheapest)
        known = chosen
        ratio = finder.columns.worth(known) / finder.columns.cost(known)


def _pipelines(
    finder: Enumerated | Generated, chosen: Ints
) -> tuple[tuple[tuple[StageKind, int], ...], ...]:
    kinds = finder.costs.kinds
    return tuple(
        tuple((kinds[kind], layers) for kind, layers in finder.columns.splits[int(index)].stages)
        for index in chosen
    )


def _reachable(objective: Objective, finder: Enumerated | Generated) -> float:
    """An upper bound on the requests per second of any placement."""
    free = Objective("throughput", budget=objective.budget)
    finder.master = evolve(finder.master, objective=free)
    return finder.ceiling()
