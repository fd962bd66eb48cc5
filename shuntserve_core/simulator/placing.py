"""What a configuration would be served with: its placement, and its spare nodes."""

from __future__ import annotations

from attrs import evolve

from shuntserve_core.config.build import optimizer_from, problem_from
from shuntserve_core.config.loader import Config
from shuntserve_core.control_plane.policy.capacity import nodes_of
from shuntserve_core.types import Cluster, Placement


def place(config: Config, optimizer: str | None = None, estimator: str | None = None) -> Placement:
    """The optimizer's choice over the cluster without its spares.  Raises `UserError`."""
    spares = config.document.serve.spares
    offers = tuple(
        evolve(offer, count=max(offer.count - spares.get(offer.instance.name, 0), 0))
        for offer in config.cluster.offers
    )
    problem = evolve(problem_from(config, estimator), cluster=Cluster(offers))
    return optimizer_from(config, optimizer).place(problem)


def spares_of(config: Config, placement: Placement) -> tuple[str, ...]:
    """Nodes to keep beside a placement's, by the numbers that it left free."""
    used = {name for pipeline in placement.pipelines for name in nodes_of(pipeline)}
    names = []
    for instance, count in config.document.serve.spares.items():
        numbers = range(config.cluster.counts.get(instance, 0))
        free = [f"{instance}#{i}" for i in numbers if f"{instance}#{i}" not in used]
        names += free[-count:] if count else []
    return tuple(names)
