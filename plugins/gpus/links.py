"""Cards, and the links between those of one instance: alike in every cloud."""

from __future__ import annotations

from collections.abc import Callable

from attrs import frozen

from shuntserve_core.types import GpuSpec, Link

PCIE_LAUNCH = 15e-6
"""Seconds that an all-reduce takes apart from its hops: kernel start and end."""
PCIE_HOP = (0.145e-3 - PCIE_LAUNCH) / 14
"""Seconds a hop of a ring over PCIe.  A 16 KB all-reduce over 8 GPUs is measured at 0.145 ms
(arXiv 2606.18600), and a ring of t GPUs makes 2(t - 1) hops."""

Links = Callable[[int], Link]
"""The link between so many GPUs of one instance."""


@frozen
class Card:
    """A GPU, and what connects several of them."""

    spec: GpuSpec
    link: Links


def over_pcie(bandwidth: float) -> Links:
    """`bandwidth` as NCCL's bus bandwidth, bytes/s."""
    return lambda count: Link(bandwidth, PCIE_LAUNCH + 2 * (count - 1) * PCIE_HOP)


def over_nvlink(bandwidth: float, latency: float) -> Links:
    """`bandwidth` in bytes/s; `latency` of a small all-reduce in seconds, however many GPUs."""
    return lambda _: Link(bandwidth, latency)
