"""`[[gpu]]`, `[[instance_type]]` and `[[cluster]]`: the hardware and what may be used of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import attrs
from attrs import evolve, field, frozen
from attrs.validators import ge, in_, le, optional

from shuntserve_core.config.fields import Name
from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.errors import did_you_mean
from shuntserve_core.types import (
    DTYPE_BYTES,
    Cluster,
    Efficiency,
    GpuSpec,
    InstanceType,
    Link,
    Offer,
)

_RATE = [ge(1.0), le(1e21)]
_PRICE = [ge(0.0), le(1e9)]


@frozen
class GpuTable:
    """A GPU that no plugin provides, or one whose figures you know better."""

    name: str
    """What instance types call it; the name of a registered GPU replaces that one's figures."""
    memory_bytes: int = field(validator=[ge(1), le(10**13)])
    """Bytes of device memory that an engine can use."""
    flops: Mapping[str, float]
    """Sustained dense FLOP/s by arithmetic type: `{ float16 = 70e12, fp8 = 140e12 }`."""
    memory_bandwidth: float = field(validator=_RATE)
    """Sustained bytes per second of device memory."""
    efficiency: Efficiency = field(factory=Efficiency)
    """Shares of the figures above that operators reach (for the `roofline` estimator)."""
    source: str = ""
    """Where the figures come from."""


@frozen
class LinkTable:
    """A connection between GPUs or instances."""

    bandwidth: float = field(validator=_RATE)
    """Bytes per second for large messages."""
    latency: float = field(default=0.0, validator=[ge(0.0), le(1e3)])
    """Seconds that the smallest message takes."""


@frozen
class InstanceTypeTable:
    """An instance type that no plugin provides, or a machine of your own."""

    name: str
    """What `[[cluster]]` calls it; the name of a registered type replaces that one."""
    gpu: Annotated[str, Name("gpu")]
    """Which GPU it has."""
    gpu_count: int = field(default=1, validator=[ge(1), le(1024)])
    """How many of them."""
    link: LinkTable = field(factory=lambda: LinkTable(10e9, 0.1e-3))
    """Between the GPUs of one instance."""
    network: LinkTable = field(factory=lambda: LinkTable(5e9, 1e-3))
    """Between instances."""
    price: float = field(default=0.0, validator=_PRICE)
    """On demand, $ per hour."""
    spot_price: float | None = field(default=None, validator=optional(_PRICE))
    """Spot, $ per hour."""
    cloud: str = ""
    """Whose it is: `aws`, `gcp`...; leave it out for your own."""


@frozen
class ClusterTable:
    """Instances of one type that may be used."""

    instance: Annotated[str, Name("instance-type")]
    """Name of the instance type."""
    count: int = field(validator=[ge(0), le(100_000)])
    """How many may be used."""
    market: str = field(default="spot", validator=in_(("spot", "on-demand")))
    """`spot` (cheap, can be taken away) or `on-demand`."""
    price: float | None = field(default=None, validator=optional(_PRICE))
    """$ per hour and instance; by default the instance type's price in that market."""


@frozen
class Hardware:
    """Everything that can be named: registered, with this file's own laid over it."""

    gpus: Mapping[str, GpuSpec]
    instance_types: Mapping[str, InstanceType]


def resolve_hardware(
    registered: Hardware,
    gpus: tuple[GpuTable, ...],
    instance_types: tuple[InstanceTypeTable, ...],
    mistakes: Mistakes,
) -> Hardware:
    """Lay a file's own GPUs and instance types over the registered ones."""
    _refuse_twice("gpu", [gpu.name for gpu in gpus], mistakes)
    _refuse_twice("instance_type", [kind.name for kind in instance_types], mistakes)
    own_gpus = {}
    for index, table in enumerate(gpus):
        if _rates_are_sound(table, f"gpu[{index}].flops", mistakes):
            facts = attrs.asdict(table, recurse=False)
            own_gpus[table.name] = GpuSpec(**facts)
    all_gpus = {**registered.gpus, **own_gpus}
    kinds = {
        name: evolve(kind, gpu=own_gpus[kind.gpu.name]) if kind.gpu.name in own_gpus else kind
        for name, kind in registered.instance_types.items()
    }
    for kind_table in instance_types:
        if kind_table.gpu in all_gpus:
            kinds[kind_table.name] = _instance_type(kind_table, all_gpus[kind_table.gpu])
    return Hardware(all_gpus, kinds)


def resolve_cluster(
    tables: tuple[ClusterTable, ...], hardware: Hardware, mistakes: Mistakes
) -> Cluster | None:
    """The offers with their prices."""
    if not tables:
        mistakes.add("cluster", "is missing", 'add [[cluster]] with instance = "..." and count = 1')
        return None
    _refuse_twice("cluster", [table.instance for table in tables], mistakes, "instance")
    offers = []
    for index, table in enumerate(tables):
        kind = hardware.instance_types.get(table.instance)
        if kind is None:
            continue  # reported where it is defined
        price = _price(table, kind)
        if price is None:
            mistakes.add(
                f"cluster[{index}].price",
                f"no spot price of {kind.name} is known",
                f'add price = $/h, or market = "on-demand" ({kind.price} $/h)',
            )
        else:
            offers.append(Offer(kind, table.count, price, table.market))
    if offers and not any(offer.count for offer in offers):
        mistakes.add("cluster", "every count is 0", "give at least one instance")
    return Cluster(tuple(offers))


def _instance_type(table: InstanceTypeTable, gpu: GpuSpec) -> InstanceType:
    return InstanceType(
        name=table.name,
        gpu=gpu,
        gpu_count=table.gpu_count,
        link=Link(table.link.bandwidth, table.link.latency),
        network=Link(table.network.bandwidth, table.network.latency),
        price=table.price,
        spot_price=table.spot_price,
        cloud=table.cloud,
    )


def _rates_are_sound(table: GpuTable, key: str, mistakes: Mistakes) -> bool:
    if not table.flops:
        mistakes.add(key, "is empty", "give { float16 = FLOP/s }")
        return False
    sound = True
    for dtype, rate in table.flops.items():
        if dtype not in DTYPE_BYTES:
            mistakes.add(f"{key}.{dtype}", "unknown key", did_you_mean(dtype, DTYPE_BYTES))
            sound = False
        elif not 1 <= rate <= 1e21:
            mistakes.add(
                f"{key}.{dtype}", f"{rate:g} is out of range", "give FLOP/s, such as 70e12"
            )
            sound = False
    return sound


def _price(table: ClusterTable, kind: InstanceType) -> float | None:
    if table.price is not None:
        return table.price
    if table.market == "on-demand" or (kind.spot_price is None and not kind.cloud):
        return kind.price  # one's own machines have but one price
    return kind.spot_price


def _refuse_twice(key: str, names: list[str], mistakes: Mistakes, part: str = "name") -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            first = names.index(name)
            mistakes.add(
                f"{key}[{index}].{part}",
                f'"{name}" is already in {key}[{first}]',
                "join the two, or rename one",
            )
