"""Links between the GPUs of one instance, alike in every cloud."""

from __future__ import annotations

from shuntserve_core.types import Link

PCIE_LAUNCH = 15e-6
"""Seconds that an all-reduce takes apart from its hops: kernel start and end."""
PCIE_HOP = (0.145e-3 - PCIE_LAUNCH) / 14
"""Seconds a hop of a ring over PCIe.  A 16 KB all-reduce over 8 GPUs is measured at 0.145 ms
(arXiv 2606.18600), and a ring of t GPUs makes 2(t - 1) hops."""


class LinkUnknown(LookupError):
    """A GPU of which no link is known."""


def pcie(bandwidth: float, count: int) -> Link:
    """GPUs that talk over PCIe; `bandwidth` as NCCL's bus bandwidth, bytes/s."""
    return Link(bandwidth, PCIE_LAUNCH + 2 * (count - 1) * PCIE_HOP)


def nvlink(bandwidth: float, latency: float) -> Link:
    """GPUs that talk over NVLink; `latency` of a small all-reduce, seconds."""
    return Link(bandwidth, latency)


def between(gpu: str, count: int) -> Link:
    """The link inside an instance of `count` such GPUs.

    PCIe bandwidths, and NVLink's of A100 and H100, are measured (arXiv 2606.18600).  V100: NCCL's
    published 8-GPU figure on NVLink 2.  The latencies over NVLink are NCCL's for a few kilobytes
    (0.02 to 0.055 ms in Vidur's profiles of A100, H100 and V100).  Raises `LinkUnknown`.
    """
    over_nvlink = {
        "V100": (130e9, 0.055e-3),
        "A100": (220e9, 0.03e-3),
        "A100-80GB": (220e9, 0.03e-3),
        "H100": (393e9, 0.02e-3),
        "H200": (393e9, 0.02e-3),
    }
    over_pcie = {"T4": 6e9, "A10G": 1.4e9, "L4": 3.5e9, "L40S": 3.5e9}
    if gpu in over_nvlink:
        return nvlink(*over_nvlink[gpu])
    if gpu not in over_pcie:
        raise LinkUnknown(f"no figure is known of the link between GPUs of the type {gpu}")
    return pcie(over_pcie[gpu], count)
