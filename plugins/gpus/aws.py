"""AWS instance types.

Prices of g5, g6, g6e, p4d and p5 are those published with ShuntServe (arXiv 2606.18600); the others
are list prices, on demand, of us-east-1 in 2025.  Prices change: those in a cluster's offers win.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from shuntserve_core.hookspecs import Unusable
from shuntserve_core.types import GpuSpec, InstanceType, Link
from shuntserve_plugins.gpus.links import LinkUnknown, between

NETWORK = Link(bandwidth=5e9, latency=1e-3)
"""Between instances, bytes/s and seconds a message: measured with g5, g6, g6e (arXiv 2606.18600).
It is taken for the others too, which is pessimistic for those with EFA (p4d and later)."""


@frozen
class _Row:
    name: str
    gpu: str
    count: int
    price: float
    spot: float | None = None


_ROWS = (
    _Row("g4dn.xlarge", "T4", 1, 0.526),
    _Row("g4dn.12xlarge", "T4", 4, 3.912),
    _Row("g4dn.metal", "T4", 8, 7.824),
    _Row("p3.2xlarge", "V100", 1, 3.06),
    _Row("p3.8xlarge", "V100", 4, 12.24),
    _Row("p3.16xlarge", "V100", 8, 24.48),
    _Row("g5.xlarge", "A10G", 1, 1.006),
    _Row("g5.12xlarge", "A10G", 4, 5.672, 2.2915),
    _Row("g5.48xlarge", "A10G", 8, 16.288),
    _Row("g6.xlarge", "L4", 1, 0.8048),
    _Row("g6.12xlarge", "L4", 4, 4.6016, 1.9445),
    _Row("g6.48xlarge", "L4", 8, 13.3504),
    _Row("g6e.xlarge", "L40S", 1, 1.861, 0.7040),
    _Row("g6e.12xlarge", "L40S", 4, 10.49264),
    _Row("g6e.48xlarge", "L40S", 8, 30.13118),
    _Row("p4d.24xlarge", "A100", 8, 21.95764),
    _Row("p4de.24xlarge", "A100-80GB", 8, 27.44705),
    _Row("p5.48xlarge", "H100", 8, 55.04),
    _Row("p5en.48xlarge", "H200", 8, 63.296),
)


def instance_types(gpus: dict[str, GpuSpec]) -> Iterator[InstanceType | Unusable]:
    """Every AWS instance type whose GPU is registered."""
    for row in _ROWS:
        if row.gpu in gpus:
            try:
                link = between(row.gpu, row.count)
            except LinkUnknown as error:
                yield Unusable(row.name, str(error))
                continue
            yield InstanceType(
                name=row.name,
                gpu=gpus[row.gpu],
                gpu_count=row.count,
                link=link,
                network=NETWORK,
                price=row.price,
                spot_price=row.spot,
                cloud="aws",
            )
