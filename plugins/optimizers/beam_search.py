"""The published search (arXiv 2606.18600): pipelines one after the other, each by a beam search.

docs/explanation/optimizers.md says what is different here.
"""

from __future__ import annotations

import time
from math import ceil, inf

from attrs import evolve, field, frozen
from attrs.validators import ge, in_

from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.planning.building import build_placement
from shuntserve_core.planning.refusal import explain_no_pipeline
from shuntserve_core.types import Placement, Slo
from shuntserve_plugins.optimizers.common import (
    FREE,
    ROUNDING,
    Candidate,
    Pool,
    demanded_rate,
    parts,
    rate_not_reached,
    whole,
)
from shuntserve_plugins.optimizers.frontier import Limits, search
from shuntserve_plugins.optimizers.tables import StageTables

NAME = "beam-search"
MODES = ("objective", "soft_slo", "hard_slo", "only_throughput")


@frozen
class BeamSearch:
    """Dynamic programming over (layers placed, stages used), a few pipelines kept in each cell."""

    top_k: int = field(default=5, validator=ge(1))
    """Pipelines that a cell keeps, each with another multiset of stages."""
    max_stages: int = field(default=13, validator=ge(1))
    """Most stages of a pipeline."""
    mode: str = field(default="objective", validator=in_(MODES))
    """What a pipeline is scored by: `soft_slo`, throughput over cost, lowered by overruns;
    `hard_slo`, throughput over cost, 0 for any overrun; `only_throughput`, whatever it costs;
    `objective`, soft or hard as the objective's SLO says."""
    merge_leftovers: bool = True
    """Whether the last pipeline is planned anew with all that is left, by throughput alone."""
    split_instances: bool = False
    """Whether a stage may take part of an instance's GPUs; not in the published search."""

    def place(self, problem: Problem) -> Placement:
        """Choose pipelines greedily.

        Raises `UserError` where the model fits nowhere or a demanded rate is not reached.
        """
        started = time.monotonic()
        plan = _Greedy(self, problem, started + problem.time_limit)
        for_rate = problem.objective.kind == "cost"
        chosen = plan.reach_rate() if for_rate else plan.use_everything()
        if not chosen:
            raise explain_no_pipeline(problem)
        stages = [found.stages for found in chosen]
        seconds = time.monotonic() - started
        return build_placement(problem, stages, optimizer=NAME, seconds=seconds)


class _Greedy:
    """Takes the best pipeline again and again, as long as there is one."""

    def __init__(self, options: BeamSearch, problem: Problem, deadline: float) -> None:
        self._options = options
        self._objective = problem.objective
        self._deadline = deadline
        self._pool = Pool.of(problem, parts if options.split_instances else whole)
        self._tables = StageTables(problem.estimator, self._pool.kinds)
        self._budget = inf if problem.objective.budget is None else problem.objective.budget

    def use_everything(self) -> list[Candidate]:
        """Pipelines for the most throughput, or for the most per dollar."""
        per_dollar = self._objective.kind == "throughput-per-dollar"
        chosen: list[Candidate] = []
        while found := self._find(chosen):
            best = found[0]
            copies = self._copies(best, chosen)
            if not copies or (per_dollar and chosen and _ratio([best]) < _ratio(chosen)):
                break
            chosen += [best] * copies
        if chosen and not per_dollar and self._options.merge_leftovers:
            self._merge_leftovers(chosen)
        return chosen

    def _merge_leftovers(self, chosen: list[Candidate]) -> None:
        """Plan the last pipeline anew, with what is left over as well."""
        if not (self._pool.available - self._pool.used(chosen)).any():
            return
        found = self._find(chosen[:-1], only_throughput=True)
        if found and found[0].worth > chosen[-1].worth and self._copies(found[0], chosen[:-1]):
            chosen[-1] = found[0]

    def reach_rate(self) -> list[Candidate]:
        """Pipelines for the demanded rate.

        Efficient pipelines come first; at each turn the cheapest way to end now is noted, and the
        cheapest of all is taken.
        """
        rate = demanded_rate(self._objective)
        chosen: list[Candidate] = []
        ends: list[list[Candidate]] = []
        while found := self._find(chosen):
            missing = rate - sum(pipeline.worth for pipeline in chosen)
            ends += [
                [*chosen, last]
                for last in found
                if last.worth >= missing * (1 - ROUNDING) and self._copies(last, chosen)
            ]
            copies = min(self._copies(found[0], chosen), ceil(missing / found[0].worth) - 1)
            if copies < 1:
                break
            chosen += [found[0]] * copies
        if chosen and not ends:
            raise rate_not_reached(rate, sum(pipeline.worth for pipeline in chosen))
        return min(ends, key=lambda end: self._pool.cost(self._pool.used(end)), default=[])

    def _find(self, chosen: list[Candidate], *, only_throughput: bool = False) -> list[Candidate]:
        """Pipelines out of what is left, best first; none when time is up."""
        if chosen and time.monotonic() > self._deadline:
            return []
        used, options = self._pool.used(chosen), self._options
        return search(
            self._tables,
            self._pool,
            Limits(
                available=self._pool.available - used,
                budget=self._budget - self._pool.cost(used),
                per_dollar=not (only_throughput or options.mode == "only_throughput"),
                slo=self._slo(),
                top_k=options.top_k,
                max_stages=options.max_stages,
                deadline=self._deadline,
            ),
        )

    def _slo(self) -> Slo:
        """The objective's limits, in the mode that the options ask for."""
        mode = self._options.mode
        if mode == "only_throughput":
            return Slo()
        return (
            self._objective.slo
            if mode == "objective"
            else evolve(self._objective.slo, mode=mode.removesuffix("_slo"))
        )

    def _copies(self, found: Candidate, chosen: list[Candidate]) -> int:
        """How many more of a pipeline there is room and money for.

        What is best now stays best while it fits, since using instances up only takes pipelines
        away: the search need not be repeated.
        """
        used = self._pool.used(chosen)
        taken = found.used > 0
        left = self._pool.available - used
        copies = int((left[taken] // found.used[taken]).min())
        while copies and self._pool.cost(used + copies * found.used) > self._budget * (
            1 + ROUNDING
        ):
            copies -= 1
        return copies


def _ratio(chosen: list[Candidate]) -> float:
    """Throughput a dollar, less what is mere rounding."""
    cost = sum(pipeline.cost for pipeline in chosen)
    worth = sum(pipeline.worth for pipeline in chosen)
    return worth / max(cost, FREE) * (1 if len(chosen) == 1 else 1 - ROUNDING)
