"""The genetic search of HexGen (Jiang et al., ICML 2024), on the configured estimator.

An individual is a grouping of all instances; each group that can hold the model is a pipeline.
Individuals only mutate.  docs/explanation/optimizers.md says what is different here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from random import Random

from attrs import field, frozen
from attrs.validators import ge, in_
from deap import base, tools

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.optimizer import Problem
from shuntserve_core.planning.building import build_placement
from shuntserve_core.planning.refusal import explain_no_pipeline
from shuntserve_core.types import Placement
from shuntserve_plugins.optimizers.common import Candidate, Pool, choose, halves, whole
from shuntserve_plugins.optimizers.groups import Group, Groups, Units

NAME = "hexgen"
FINALISTS = 10
"""Best groupings whose layers are partitioned anew at the end."""


class _Fitness(base.Fitness):  # type: ignore[misc]  # deap has no types
    """More is better."""

    weights = (1.0,)


class _Individual(list[Group]):
    """Groups of units, without the empty ones."""

    def __init__(self, groups: Iterable[Group]) -> None:
        super().__init__(sorted(group for group in groups if group))
        self.fitness = _Fitness()


@frozen
class HexGen:
    """Genetic search: mutation only, in (mu + lambda) selection."""

    layers: str = field(default="relayered", validator=in_(("pure", "relayered")))
    """`pure`: a stage holds layers by its share of the group's memory; `relayered`: at the end
    the groups are partitioned anew by the dynamic programme of `beam-search`."""
    population: int = field(default=100, validator=ge(2))
    """Groupings that live on."""
    generations: int = field(default=300, validator=ge(1))
    """Rounds of one mutation an individual."""
    split_instances: bool = True
    """Whether an instance may be cut into two halves."""

    def place(self, problem: Problem) -> Placement:
        """Evolve groupings; the random numbers follow `problem.seed`.

        Raises `UserError` where no group can hold the model or a demanded rate is not reached.
        """
        started = time.monotonic()
        evolution = _Evolution(self, problem, started + problem.time_limit)
        finalists = evolution.run()
        groups = evolution.groups
        if self.layers == "relayered":
            plans = [[groups.relayered(group) for group in best] for best in finalists]
        else:
            plans = [groups.candidates(finalists[0])]
        best = max(plans, key=lambda plan: _value(problem, groups.pool, plan))
        chosen = choose(groups.pool, problem.objective, best)
        if not chosen:
            raise explain_no_pipeline(problem)
        stages = [pipeline.stages for pipeline in chosen]
        seconds = time.monotonic() - started
        return build_placement(problem, stages, optimizer=NAME, seconds=seconds)


class _Evolution:
    """The population and how it changes."""

    def __init__(self, options: HexGen, problem: Problem, deadline: float) -> None:
        self._options = options
        self._problem = problem
        self._deadline = deadline
        self._random = Random(problem.seed)
        self.groups = Groups(
            problem, Pool.of(problem, halves if options.split_instances else whole)
        )
        self._units = Units(self.groups.pool)

    def run(self) -> list[_Individual]:
        """The best groupings, best first."""
        hall = tools.HallOfFame(FINALISTS, similar=list.__eq__)
        population = [self._random_individual() for _ in range(self._options.population)]
        self._evaluate(population)
        hall.update(population)
        for _ in range(self._options.generations):
            if time.monotonic() > self._deadline:
                break
            children = [
                self._mutant(self._random.choice(population))
                for _ in range(self._options.population)
            ]
            self._evaluate(children)
            hall.update(children)
            # Twins would crowd out everything else.
            distinct = {tuple(each): each for each in (*population, *children)}
            population = tools.selBest(list(distinct.values()), self._options.population)
        return list(hall)

    def _random_individual(self) -> _Individual:
        """All units, shuffled and dealt out to as many groups as might hold the model."""
        units = self._units.whole()
        self._random.shuffle(units)
        most = max(1, min(len(units), self.groups.most_replicas()))
        number = self._random.randint(1, most)
        return _Individual(self._units.sort(units[index::number]) for index in range(number))

    def _mutant(self, parent: _Individual) -> _Individual:
        groups = [list(group) for group in parent]
        mutations = [self._move, self._swap, self._split, self._merge]
        if self._units.can_halve:
            mutations += [self._halve, self._rejoin]
        self._random.choice(mutations)(groups)
        return _Individual(self._units.sort(group) for group in groups)

    def _evaluate(self, individuals: list[_Individual]) -> None:
        self.groups.learn(group for each in individuals for group in each)
        for each in individuals:
            plan = self.groups.candidates(each)
            each.fitness.values = (_value(self._problem, self.groups.pool, plan),)

    # Mutations change a list of groups in place; one that cannot be done changes nothing.

    def _pair(self, groups: list[list[int]]) -> tuple[list[int], list[int]] | None:
        if len(groups) < 2:
            return None
        one, other = self._random.sample(groups, 2)
        return one, other

    def _move(self, groups: list[list[int]]) -> None:
        """A unit changes its group."""
        if pair := self._pair(groups):
            one, other = pair
            other.append(one.pop(self._random.randrange(len(one))))

    def _swap(self, groups: list[list[int]]) -> None:
        """Two groups exchange a unit."""
        if pair := self._pair(groups):
            one, other = pair
            i, j = self._random.randrange(len(one)), self._random.randrange(len(other))
            one[i], other[j] = other[j], one[i]

    def _split(self, groups: list[list[int]]) -> None:
        """A group becomes two."""
        group = self._random.choice(groups)
        self._random.shuffle(group)
        cut = self._random.randrange(len(group))
        groups.append(group[:cut])
        del group[:cut]

    def _merge(self, groups: list[list[int]]) -> None:
        """Two groups become one."""
        if pair := self._pair(groups):
            one, other = pair
            one += other
            other.clear()

    def _halve(self, groups: list[list[int]]) -> None:
        """An instance becomes two halves."""
        group = self._random.choice(groups)
        at = self._random.randrange(len(group))
        group[at : at + 1] = self._units.halved(group[at])

    def _rejoin(self, groups: list[list[int]]) -> None:
        """Two halves of a group become an instance again."""
        group = self._random.choice(groups)
        unit = self._random.choice(group)
        joined = self._units.joined(unit)
        if joined is not None and group.count(unit) >= 2:
            group.remove(unit)
            group.remove(unit)
            group.append(joined)


def _value(problem: Problem, pool: Pool, plan: list[Candidate]) -> float:
    """How well a plan serves the objective: more is better."""
    objective = problem.objective
    if objective.kind == "throughput" and objective.budget is None:
        return sum(candidate.worth for candidate in plan)
    try:
        chosen = choose(pool, objective, plan)
    except UserError:  # the rate is not reached: the nearer the better
        return sum(candidate.worth for candidate in plan) / (objective.rate or 1) - 1
    worth = sum(candidate.worth for candidate in chosen)
    if objective.kind == "throughput":
        return worth
    cost = max(pool.cost(pool.used(chosen)), 1e-9)
    return worth / cost if objective.kind == "throughput-per-dollar" else float(bool(chosen)) / cost
