"""Google Cloud machine types; list prices, on demand, of us-central1 in 2025."""

from shuntserve_core.types import Link
from shuntserve_plugins.gpus.rented import Rented

NETWORK = Link(bandwidth=1.25e9, latency=1e-3)
"""Seconds a message between machines: as measured on AWS (arXiv 2606.18600).  Each row has its own
bandwidth, bytes/s: the documented limit of egress."""

ROWS = (
    Rented("g2-standard-4", "L4", 1, 0.7069, network=1.25e9),
    Rented("g2-standard-8", "L4", 1, 0.8536, network=2e9),
    Rented("g2-standard-24", "L4", 2, 2.0007, network=4e9),
    Rented("g2-standard-48", "L4", 4, 4.0014, network=6.25e9),
    Rented("g2-standard-96", "L4", 8, 8.0029, network=12.5e9),
    Rented("a2-highgpu-1g", "A100", 1, 3.6733, network=3e9),
    Rented("a2-highgpu-2g", "A100", 2, 7.3467, network=4e9),
    Rented("a2-highgpu-4g", "A100", 4, 14.6935, network=6.25e9),
    Rented("a2-highgpu-8g", "A100", 8, 29.3869, network=12.5e9),
    Rented("a2-ultragpu-1g", "A100-80GB", 1, 5.0688, network=3e9),
    Rented("a2-ultragpu-8g", "A100-80GB", 8, 40.5504, network=12.5e9),
)
