"""One node as the manager knows it."""

from __future__ import annotations

import time
from typing import Any

from attrs import define, field

from shuntserve_core.control_plane.policy.capacity import Held
from shuntserve_core.control_plane.policy.view import NodeView
from shuntserve_core.node.client import AgentClient
from shuntserve_core.runtime.states import Machine, NodeState


@define(eq=False)
class Node:
    """A machine: its state, its agent, and what its GPUs hold."""

    name: str
    instance: str
    gpus: int
    price: float
    """$ per hour."""
    market: str
    machine: Machine[NodeState]
    agent: AgentClient | None = None
    deadline: float | None = None
    """Seconds since the epoch at which it is to be taken, while `noticed`."""
    enforced: bool = False
    """Whether we end it at the deadline, because no cloud will."""
    ending: bool = False
    """Whether we are about to end it, on somebody's word."""
    since: float = field(factory=time.time)
    held: dict[int, Held] = field(factory=dict)
    """What the tensor store of each GPU holds."""
    weights_read: int = 0
    """Bytes that its tensor stores read from the weight store."""

    @property
    def usable(self) -> bool:
        """Whether new pipelines may be put here."""
        return self.machine.state is NodeState.UP

    @property
    def present(self) -> bool:
        """Whether it still runs what it has."""
        return self.machine.state in (NodeState.UP, NodeState.NOTICED)

    @property
    def goes(self) -> bool:
        """Whether what ends on it ends because of it: it is lost, or will be soon."""
        return self.ending or not self.usable

    def view(self, ahead: float = 0.0) -> NodeView:
        """What a decision may know of it, on a clock so many seconds ahead of the epoch's."""
        return NodeView(
            self.name,
            self.instance,
            tuple(range(self.gpus)),
            self.machine.state,
            None if self.deadline is None else self.deadline + ahead,
            self.enforced,
            self.ending,
            dict(self.held),
        )

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "instance": self.instance,
            "gpus": self.gpus,
            "state": str(self.machine.state),
            "deadline": self.deadline,
            "market": self.market,
            "price_per_hour": self.price,
            "since": self.since,
            "url": self.agent.address.url if self.agent else "",
            "weights_read_bytes": self.weights_read,
            "held": {
                str(gpu): {
                    "tensor_parallel": held.tensor_parallel,
                    "rank": held.rank,
                    "layers": [held.layers.start, held.layers.stop],
                }
                for gpu, held in sorted(self.held.items())
            },
        }
