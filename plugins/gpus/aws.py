"""AWS instance types.

Prices of g5, g6, g6e, p4d and p5 are those published with ShuntServe (arXiv 2606.18600); the others
are list prices, on demand, of us-east-1 in 2025.  Prices change: those in a cluster's offers win.
"""

from shuntserve_core.types import Link
from shuntserve_plugins.gpus.rented import Rented

NETWORK = Link(bandwidth=5e9, latency=1e-3)
"""Between instances, bytes/s and seconds a message: measured with g5, g6, g6e (arXiv 2606.18600).
It is taken for the others too, which is pessimistic for those with EFA (p4d and later)."""

ROWS = (
    Rented("g4dn.xlarge", "T4", 1, 0.526),
    Rented("g4dn.12xlarge", "T4", 4, 3.912),
    Rented("g4dn.metal", "T4", 8, 7.824),
    Rented("p3.2xlarge", "V100", 1, 3.06),
    Rented("p3.8xlarge", "V100", 4, 12.24),
    Rented("p3.16xlarge", "V100", 8, 24.48),
    Rented("g5.xlarge", "A10G", 1, 1.006),
    Rented("g5.12xlarge", "A10G", 4, 5.672, spot=2.2915),
    Rented("g5.48xlarge", "A10G", 8, 16.288),
    Rented("g6.xlarge", "L4", 1, 0.8048),
    Rented("g6.12xlarge", "L4", 4, 4.6016, spot=1.9445),
    Rented("g6.48xlarge", "L4", 8, 13.3504),
    Rented("g6e.xlarge", "L40S", 1, 1.861, spot=0.7040),
    Rented("g6e.12xlarge", "L40S", 4, 10.49264),
    Rented("g6e.48xlarge", "L40S", 8, 30.13118),
    Rented("p4d.24xlarge", "A100", 8, 21.95764),
    Rented("p4de.24xlarge", "A100-80GB", 8, 27.44705),
    Rented("p5.48xlarge", "H100", 8, 55.04),
    Rented("p5en.48xlarge", "H200", 8, 63.296),
)
