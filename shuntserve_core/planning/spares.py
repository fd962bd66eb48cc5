"""Instances that are kept beside the pipelines: what is left to place, and which nodes they are."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import evolve

from shuntserve_core.types import Cluster, Placement


def without_spares(cluster: Cluster, spares: Mapping[str, int]) -> Cluster:
    """What pipelines may use; `spares` are counts by instance type, as the configuration has them.

    The configuration is refused where they are not in the cluster.
    """
    offers = (
        evolve(offer, count=max(offer.count - spares.get(offer.instance.name, 0), 0))
        for offer in cluster.offers
    )
    return Cluster(tuple(offers))


def spare_nodes(
    cluster: Cluster, spares: Mapping[str, int], placement: Placement
) -> tuple[str, ...]:
    """Names of the spare nodes beside a placement's: the highest numbers that it leaves free."""
    used = {stage.node for pipeline in placement.pipelines for stage in pipeline.stages}
    names: list[str] = []
    for instance, count in spares.items():
        numbers = range(cluster.counts.get(instance, 0))
        free = [f"{instance}#{i}" for i in numbers if f"{instance}#{i}" not in used]
        names += free[-count:] if count else []
    return tuple(names)
