"""GPU specs and instance types that come with shuntserve.

* `nvidia`: GPUs, how much of their figures is reached, and the links between them
* `aws`, `gcp`: what is rented, a table each; `rented` makes instance types of it
* `host`: the processor of this machine
"""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import Unusable, hookimpl
from shuntserve_core.types import GpuSpec, InstanceType


@hookimpl
def shuntserve_register_gpus() -> Iterable[GpuSpec]:
    """NVIDIA GPUs, and the processor of this machine."""
    from shuntserve_plugins.gpus.host import CPU
    from shuntserve_plugins.gpus.nvidia import CARDS

    return (*(card.spec for card in CARDS), CPU)


@hookimpl
def shuntserve_register_instance_types(
    gpus: dict[str, GpuSpec],
) -> Iterable[InstanceType | Unusable]:
    """What AWS and Google Cloud rent, and `local`."""
    from shuntserve_plugins.gpus import aws, gcp, host
    from shuntserve_plugins.gpus.nvidia import CARDS
    from shuntserve_plugins.gpus.rented import instance_types

    links = {card.spec.name: card.link for card in CARDS}
    for cloud, table in (("aws", aws), ("gcp", gcp)):
        yield from instance_types(
            table.ROWS, cloud=cloud, network=table.NETWORK, gpus=gpus, links=links
        )
    yield from host.instance_types(gpus)
