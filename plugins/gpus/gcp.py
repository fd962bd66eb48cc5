"""Google Cloud machine types; list prices, on demand, of us-central1 in 2025."""

from __future__ import annotations

from collections.abc import Iterator

from shuntserve_core.hookspecs import Unusable
from shuntserve_core.types import GpuSpec, InstanceType, Link
from shuntserve_plugins.gpus.links import LinkUnknown, between

_ROWS = (
    # name, GPU, count, $/h, network bytes/s (the documented egress limit)
    ("g2-standard-4", "L4", 1, 0.7069, 1.25e9),
    ("g2-standard-8", "L4", 1, 0.8536, 2e9),
    ("g2-standard-24", "L4", 2, 2.0007, 4e9),
    ("g2-standard-48", "L4", 4, 4.0014, 6.25e9),
    ("g2-standard-96", "L4", 8, 8.0029, 12.5e9),
    ("a2-highgpu-1g", "A100", 1, 3.6733, 3e9),
    ("a2-highgpu-2g", "A100", 2, 7.3467, 4e9),
    ("a2-highgpu-4g", "A100", 4, 14.6935, 6.25e9),
    ("a2-highgpu-8g", "A100", 8, 29.3869, 12.5e9),
    ("a2-ultragpu-1g", "A100-80GB", 1, 5.0688, 3e9),
    ("a2-ultragpu-8g", "A100-80GB", 8, 40.5504, 12.5e9),
)
_MESSAGE_LATENCY = 1e-3
"""Seconds a message between machines: as measured on AWS (arXiv 2606.18600)."""


def instance_types(gpus: dict[str, GpuSpec]) -> Iterator[InstanceType | Unusable]:
    """Every machine type whose GPU is registered."""
    for name, gpu, count, price, egress in _ROWS:
        if gpu in gpus:
            try:
                link = between(gpu, count)
            except LinkUnknown as error:
                yield Unusable(name, str(error))
                continue
            yield InstanceType(
                name=name,
                gpu=gpus[gpu],
                gpu_count=count,
                link=link,
                network=Link(egress, _MESSAGE_LATENCY),
                price=price,
                cloud="gcp",
            )
