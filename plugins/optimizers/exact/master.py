"""The choice among sets of stages: a set-packing integer program, solved by HiGHS.

Variables: how often each column (a set of stages) is used; for objectives that look at money also
how many instances of each offer are rented.  All objectives are maximised:

* throughput: the sum of the columns' worth;
* throughput-per-dollar: the same less `rate_of_exchange` times the $/h (Dinkelbach's method);
* cost: minus the $/h, where the sum of worth must reach the demanded rate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from attrs import evolve, frozen

from shuntserve_core.interfaces.estimator import Floats, Ints
from shuntserve_core.quiet import quiet_stdout
from shuntserve_core.types import Objective
from shuntserve_plugins.optimizers.exact.multisets import Resources


class Relaxation(NamedTuple):
    """The linear relaxation's answer."""

    value: float
    """Of the objective; −inf where no solution exists."""
    prices: Floats
    """(rows,): what a unit of each row of `Resources` is worth."""
    weight: float
    """What a unit of worth is worth: 1, or the dual of the demanded rate."""
    used: Floats
    """(columns,): how often each is used."""


class Choice(NamedTuple):
    """The integer program's answer."""

    value: float
    bound: float
    """Proved upper bound on the objective over these columns."""
    used: Ints


@frozen(eq=False)
class Master:
    """The integer program without its columns."""

    resources: Resources
    objective: Objective
    exchange: float = 0.0
    """Requests per second given up for one $/h, for `throughput-per-dollar`."""

    def at(self, exchange: float) -> Master:
        """The same with another rate of exchange."""
        return evolve(self, exchange=exchange)

    @property
    def priced(self) -> bool:
        """Whether money matters."""
        return self.objective.kind != "throughput" or self.objective.budget is not None

    def dual_value(self, prices: Floats, weight: float) -> float:
        """Upper bound on the objective, if no column is worth more than its price.

        `prices` are those of the rows of `Resources`, `weight` that of worth.  Renting an instance
        costs money and yields its share of the rows; whatever gains by that is rented in full.
        """
        resources, objective = self.resources, self.objective
        if not self.priced:
            return float(prices @ resources.available)
        yields = np.bincount(
            resources.owners, prices * resources.shares, minlength=len(resources.counts)
        )
        pays = {"throughput": 0.0, "throughput-per-dollar": self.exchange, "cost": 1.0}
        each = yields - pays[objective.kind] * resources.prices
        value = -weight * objective.rate if objective.kind == "cost" and objective.rate else 0.0
        if objective.budget is None:
            return value + float(np.maximum(each, 0) @ resources.counts)
        return value + _knapsack(each, resources.prices, resources.counts, objective.budget)

    def relax(self, worth: Floats, usage: Floats) -> Relaxation:
        """Solve with fractions of columns; `worth` (n,), `usage` (n, rows)."""
        solver = self._load(worth, usage, whole=False)
        solver.run()
        n, rows = len(worth), usage.shape[1]
        if not _solved(solver):
            return Relaxation(-np.inf, np.zeros(rows), 1.0, np.zeros(n))
        solution = solver.getSolution()
        duals = -np.array(solution.row_dual)
        demanded = self.objective.kind == "cost"
        weight = -duals[rows] if demanded else 1.0
        value = -float(solver.getInfo().objective_function_value)
        used = np.array(solution.col_value)[:n]
        return Relaxation(value, np.maximum(duals[:rows], 0), max(float(weight), 0.0), used)

    def choose(
        self, worth: Floats, usage: Floats, seconds: float, start: Ints | None = None
    ) -> Choice:
        """Solve with whole columns, for `seconds` at most; `start` is a choice to begin with."""
        n = len(worth)
        solver = self._load(worth, usage, whole=True)
        solver.setOptionValue("time_limit", max(seconds, 0.05))
        if start is not None:
            values = np.concatenate([start, self._rented(start @ usage)]).astype(np.float64)
            solver.setSolution(len(values), np.arange(len(values), dtype=np.int32), values)
        solver.run()
        info = solver.getInfo()
        used = np.rint(np.array(solver.getSolution().col_value)[:n]).astype(np.int64)
        if info.primal_solution_status != 2 or not len(used):
            return Choice(-np.inf, -float(info.mip_dual_bound), np.zeros(n, dtype=np.int64))
        value = -float(info.objective_function_value)
        return Choice(value, -float(info.mip_dual_bound), used)

    def _rented(self, usage: Floats) -> Floats:
        """Instances of each offer that are needed; none where money does not matter."""
        resources = self.resources
        nodes = np.zeros(len(resources.counts) if self.priced else 0)
        if self.priced:
            np.maximum.at(nodes, resources.owners, np.ceil(usage / resources.shares - 1e-9))
        return nodes

    def _load(self, worth: Floats, usage: Floats, *, whole: bool) -> Any:
        import highspy

        cost, lower, upper, matrix, row_lower, row_upper = self._program(worth, usage)
        lp = highspy.HighsLp()
        lp.num_row_, lp.num_col_ = matrix.shape
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, lower, upper
        lp.row_lower_, lp.row_upper_ = row_lower, row_upper
        column, row = np.nonzero(matrix.T)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_ = np.searchsorted(column, np.arange(matrix.shape[1] + 1))
        lp.a_matrix_.index_ = row
        lp.a_matrix_.value_ = matrix[row, column]
        if whole:
            lp.integrality_ = [highspy.HighsVarType.kInteger] * matrix.shape[1]
        with quiet_stdout():  # versions since 1.16 print a banner here, whatever is asked for later
            solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("mip_rel_gap", 0.0)
        solver.setOptionValue("mip_abs_gap", 1e-9)
        solver.passModel(lp)
        return solver

    def _program(self, worth: Floats, usage: Floats) -> tuple[Floats, ...]:
        """Costs (minimised), bounds of columns, matrix, bounds of rows."""
        resources = self.resources
        n, rows = usage.shape
        offers = len(resources.counts) if self.priced else 0
        earns = 0.0 if self.objective.kind == "cost" else 1.0
        pays = self.exchange if self.objective.kind == "throughput-per-dollar" else 0.0
        pays = 1.0 if self.objective.kind == "cost" else pays
        cost = np.concatenate([-earns * worth, pays * resources.prices[:offers]])
        lower = np.zeros(n + offers)
        upper = np.concatenate([np.full(n, np.inf), resources.counts[:offers]])
        matrix = np.zeros((rows, n + offers))
        matrix[:, :n] = usage.T
        row_lower, row_upper = np.full(rows, -np.inf), resources.available.copy()
        if self.priced:
            matrix[np.arange(rows), n + resources.owners] = -resources.shares
            row_upper[:] = 0
        lines = []
        if self.objective.kind == "cost" and self.objective.rate is not None:
            lines.append((worth, 0 * resources.prices, self.objective.rate, np.inf))
        if self.objective.budget is not None:
            lines.append((0 * worth, resources.prices, -np.inf, self.objective.budget))
        for of_columns, of_offers, least, most in lines:
            matrix = np.vstack([matrix, np.concatenate([of_columns, of_offers])])
            row_lower, row_upper = np.append(row_lower, least), np.append(row_upper, most)
        return cost, lower, upper, matrix, row_lower, row_upper


def _knapsack(gain: Floats, price: Floats, count: Floats, budget: float) -> float:
    """Most gain for a budget, with fractions of instances."""
    free = price <= 0
    total = float(np.maximum(gain[free], 0) @ count[free])
    for index in np.argsort(-np.where(free, -np.inf, gain / np.where(free, 1, price))):
        if gain[index] <= 0 or free[index]:
            break
        bought = min(count[index], budget / price[index])
        total += bought * gain[index]
        budget -= bought * price[index]
    return total


def _solved(solver: Any) -> bool:
    import highspy

    return bool(solver.getModelStatus() == highspy.HighsModelStatus.kOptimal)
