"""Memory that other processes can map."""

from shuntserve_core.tensorstore.memory.host import (
    HostMemory,
    HostRegion,
    HostSegment,
    Loan,
    Memory,
    Region,
    Segment,
)

__all__ = ["HostMemory", "HostRegion", "HostSegment", "Loan", "Memory", "Region", "Segment"]
