"""What a configuration would be served with: its placement, and its spare nodes."""

from __future__ import annotations

from shuntserve_core.config.build import optimizer_from, problem_from
from shuntserve_core.config.loader import Config
from shuntserve_core.planning.spares import spare_nodes, without_spares
from shuntserve_core.types import Placement


def place(config: Config, optimizer: str | None = None, estimator: str | None = None) -> Placement:
    """The optimizer's choice over the cluster without its spares.  Raises `UserError`."""
    cluster = without_spares(config.cluster, config.document.serve.spares)
    problem = problem_from(config, estimator, cluster=cluster)
    return optimizer_from(config, optimizer).place(problem)


def spares_of(config: Config, placement: Placement) -> tuple[str, ...]:
    """Nodes to keep beside a placement's, by the numbers that it left free."""
    return spare_nodes(config.cluster, config.document.serve.spares, placement)
