"""Tables of what clouds rent, and the instance types that they become."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from attrs import frozen

from shuntserve_core.hookspecs import Unusable
from shuntserve_core.types import GpuSpec, InstanceType, Link
from shuntserve_plugins.gpus.links import Links


@frozen
class Rented:
    """A row of a cloud's table."""

    name: str
    gpu: str
    count: int
    """GPUs."""
    price: float
    """On demand, $ per hour."""
    spot: float | None = None
    """$ per hour."""
    network: float | None = None
    """Bytes per second to other instances; None is what the cloud's table has for all."""


def instance_types(
    rows: Iterable[Rented],
    *,
    cloud: str,
    network: Link,
    gpus: Mapping[str, GpuSpec],
    links: Mapping[str, Links],
) -> Iterator[InstanceType | Unusable]:
    """Every row whose GPU is registered; `network` is for rows without a bandwidth of their own."""
    for row in rows:
        if row.gpu not in gpus:
            continue
        if row.gpu not in links:
            reason = f"no figure is known of the link between GPUs of the type {row.gpu}"
            yield Unusable(row.name, reason)
            continue
        bandwidth = network.bandwidth if row.network is None else row.network
        yield InstanceType(
            name=row.name,
            gpu=gpus[row.gpu],
            gpu_count=row.count,
            link=links[row.gpu](row.count),
            network=Link(bandwidth, network.latency),
            price=row.price,
            spot_price=row.spot,
            cloud=cloud,
        )
