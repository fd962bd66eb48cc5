"""AWS instance types, with the prices published with ShuntServe (arXiv 2606.18600)."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from shuntserve_core.types import GpuSpec, InstanceType, Link

NETWORK = Link(bandwidth=5e9, latency=1e-3)
"""Between instances: bytes per second and seconds a message."""

LINKS = {
    "T4": Link(6e9, 0.145e-3),
    "A10G": Link(1.4e9, 0.145e-3),
    "L4": Link(3.5e9, 0.145e-3),
    "L40S": Link(3.5e9, 0.145e-3),
    "A100": Link(220e9, 0.03e-3),
    "H100": Link(393e9, 0.02e-3),
}
"""Inside an instance, by GPU.  0.145 ms is a measured 16 KB all-reduce over PCIe."""


@frozen
class _Row:
    name: str
    gpu: str
    count: int
    price: float
    spot: float | None = None


_ROWS = (
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
    _Row("p5.48xlarge", "H100", 8, 55.04),
)


def instance_types(gpus: dict[str, GpuSpec]) -> Iterator[InstanceType]:
    """Every AWS instance type whose GPU is registered."""
    for row in _ROWS:
        if row.gpu in gpus:
            yield InstanceType(
                name=row.name,
                gpu=gpus[row.gpu],
                gpu_count=row.count,
                link=LINKS[row.gpu],
                network=NETWORK,
                price=row.price,
                spot_price=row.spot,
                cloud="aws",
            )
