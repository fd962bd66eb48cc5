"""Messages: inside a stage, and from a stage to the next."""

from __future__ import annotations

from typing import Any

import numpy as np

from shuntserve_plugins.estimators.roofline.hardware import Rates
from shuntserve_plugins.estimators.roofline.parts import Part, message

HAND_OFF_TENSORS = 2
"""vLLM sends hidden states and residual from stage to stage, each tokens × hidden."""


def all_reduce(rates: Rates, size: Any) -> Part:
    """Sum `size` bytes over the GPUs of a stage: latency, and 2(t − 1)/t of them over the link.

    With the measured latency and bandwidth, 16 KB over 8 GPUs on PCIe take 0.15 ms.
    """
    return message(rates.reduce_latency + 2 * (rates.t - 1) / rates.t * size / rates.link)


def all_gather(rates: Rates, size: Any) -> Part:
    """Give every GPU of a stage the `size` bytes of which each has its share: half the way."""
    return message((rates.reduce_latency + 2 * (rates.t - 1) / rates.t * size / rates.link) / 2)


def hand_off(rates: Rates, size: Any, last: Any) -> Part:
    """Send a step's activations, `size` bytes a tensor, to the next stage, if there is one."""
    seconds = rates.network_latency + HAND_OFF_TENSORS * size / rates.network
    return message(np.where(last, 0.0, seconds))


def spread(rates: Rates, size: Any, first: Any) -> Part:
    """Put together on all GPUs what each received a slice of, on every stage but the first."""
    gather = all_gather(rates, HAND_OFF_TENSORS * size)
    return message(np.where(first, 0.0, gather.seconds))
