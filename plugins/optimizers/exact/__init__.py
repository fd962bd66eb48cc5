"""The best set of pipelines, found jointly, with a proof of how good it is.

docs/explanation/exact-placement.md explains the search and proves its bound.
"""

from __future__ import annotations

import time

from attrs import field, frozen
from attrs.validators import ge, gt

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.planning.building import build_placement, stage_kinds
from shuntserve_core.planning.refusal import explain_no_pipeline
from shuntserve_core.types import Placement
from shuntserve_plugins.optimizers.exact.answer import Answer
from shuntserve_plugins.optimizers.exact.objectives import search

_EXACT = 1e-7
"""Relative gap that is rounding."""


@frozen
class Exact:
    """Integer program over sets of stages, each with its best split of the layers."""

    max_stages: int = field(default=16, validator=ge(1))
    """Longest pipeline that is considered; the bound holds for pipelines up to this length."""
    max_sets: int = field(default=150_000, validator=ge(1))
    """Up to how many sets of stages are listed; where there are more they are generated."""
    seconds: float = field(default=15.0, validator=gt(0))
    """Time for the search where sets are generated; the problem's time limit holds as well."""

    def place(self, problem: Problem) -> Placement:
        """Choose pipelines until proved best or `problem.time_limit` is over."""
        start = time.monotonic()
        answer = search(problem, stage_kinds(problem), self.max_stages, self.max_sets, self.seconds)
        if not answer.pipelines:
            raise self._nothing(problem, answer)
        return self._placement(problem, answer, start)

    def _placement(self, problem: Problem, answer: Answer, start: float) -> Placement:
        gap = abs(answer.bound - answer.value) / max(abs(answer.value), 1e-300)
        draft = build_placement(problem, answer.pipelines, optimizer="exact", seconds=0.0)
        bound_rps = {
            "throughput": answer.bound,
            "throughput-per-dollar": answer.bound * draft.cost_per_hour,
        }.get(problem.objective.kind)
        return build_placement(
            problem,
            answer.pipelines,
            optimizer="exact",
            optimal=gap <= _EXACT,
            bound_rps=bound_rps,
            seconds=time.monotonic() - start,
        )

    def _nothing(self, problem: Problem, answer: Answer) -> UserError:
        objective = problem.objective
        if objective.kind == "cost" and answer.reachable is not None:
            return UserError(
                f"{objective.rate:g} requests/s cannot be reached: at most {answer.reachable:.4g}",
                where="objective.rate",
                remedy="demand less, or offer more instances",
            )
        return explain_no_pipeline(problem)
