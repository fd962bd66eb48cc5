"""Nodes of a simulated cluster, and what they cost."""

from __future__ import annotations

import math

from attrs import define, field

from shuntserve_core.config.loader import Config
from shuntserve_core.control_plane.policy.capacity import Held
from shuntserve_core.control_plane.policy.states import NodeState
from shuntserve_core.control_plane.policy.view import NodeView
from shuntserve_core.types import Offer


@define(eq=False)
class SimulatedNode:
    """A machine, from the moment that it is paid for."""

    name: str
    instance: str
    gpus: int
    price: float
    """$ per hour."""
    market: str
    since: float
    state: NodeState = NodeState.UP
    until: float = math.inf
    """When it was given back or taken."""
    deadline: float | None = None
    held: dict[int, Held] = field(factory=dict)
    """What the tensor store of each GPU holds."""

    @property
    def vanished(self) -> bool:
        """Whether it is not there any more, whether or not that is known."""
        return math.isfinite(self.until)

    @property
    def view(self) -> NodeView:
        """What a decision may know of it."""
        gpus = tuple(range(self.gpus))
        return NodeView(
            self.name, self.instance, gpus, self.state, self.deadline, held=dict(self.held)
        )

    def cost(self, end: float) -> float:
        """$ until `end`, by the second."""
        return max(min(self.until, end) - self.since, 0.0) / 3600 * self.price


def new_node(config: Config, name: str, market: str, since: float) -> SimulatedNode | None:
    """A node by its name, `<type>#<number>`; None for a type that is not offered."""
    instance = name.rpartition("#")[0]
    offer = next((o for o in config.cluster.offers if o.instance.name == instance), None)
    if offer is None:
        return None
    market = market or offer.market
    gpus = offer.instance.gpu_count
    return SimulatedNode(name, instance, gpus, price_of(offer, market), market, since)


def price_of(offer: Offer, market: str) -> float:
    """$ per hour of an instance in a market."""
    if market == offer.market:
        return offer.price
    if market == "on-demand":
        return offer.instance.price
    spot = offer.instance.spot_price
    return offer.price if spot is None else spot
