"""How many instances of which type may be used, and at which price."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

from attrs import define, field, frozen
from attrs.validators import ge

from shuntserve_core.types.hardware import InstanceType


@frozen
class Offer:
    """Instances of one type that may be used."""

    instance: InstanceType
    count: int = field(validator=ge(0))
    price: float = field(validator=ge(0))
    """$ per hour and instance."""
    market: str = "spot"
    """`spot` (can be taken away) or `on-demand`."""


@define(frozen=True, slots=False)
class Cluster:
    """All offers; each instance type appears once."""

    offers: tuple[Offer, ...]

    @cached_property
    def catalog(self) -> Mapping[str, InstanceType]:
        """Instance types by name."""
        return MappingProxyType({offer.instance.name: offer.instance for offer in self.offers})

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Instances that may be used, by type name."""
        return MappingProxyType({offer.instance.name: offer.count for offer in self.offers})

    @cached_property
    def prices(self) -> Mapping[str, float]:
        """$ per hour of one instance, by type name."""
        return MappingProxyType({offer.instance.name: offer.price for offer in self.offers})
