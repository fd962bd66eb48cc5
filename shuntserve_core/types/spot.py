"""What a cloud says about an instance's future."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import in_

EVENT_KINDS = ("notice", "rebalance", "withdrawn", "lost", "restored")


@frozen
class SpotEvent:
    """One word about one node.  Sources may repeat themselves, and may be wrong."""

    node: str
    """Name of the node, or of an instance type where a trace does not name nodes."""
    kind: str = field(validator=in_(EVENT_KINDS))
    """`notice`: it will be taken at `deadline`; `rebalance`: it is likely to be taken, at no known
    time; `withdrawn`: it stays after all; `lost`: it is gone; `restored`: it (or another of its
    type) can be had again."""
    deadline: float | None = None
    """Seconds since the epoch; None where unknown."""
    source: str = ""
    """Which spot source says so."""
    enforced: bool = False
    """Whether the node must be ended here at the deadline (a rehearsal), because no cloud will."""
