"""The figures of stages, as arrays that operators are computed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from shuntserve_core.types import InstanceType, ModelSpec

LAUNCH_LATENCY = 15e-6
"""Seconds of a small all-reduce that do not depend on how many GPUs take part: kernel start and
end, as seen in Vidur's profiles of two GPUs over NVLink."""


class Rates(NamedTuple):
    """What the operators need of a stage: scalars, or arrays that are broadcast."""

    t: Any
    """GPUs that share each layer."""
    kv_heads: Any
    """Key/value heads on each of them; at least one, so replicated beyond the model's number."""
    matrix_flops: Any
    """FLOP/s in products with the layers' weights."""
    half_flops: Any
    """FLOP/s in products with the output table, which is not quantised."""
    attention_flops: Any
    bandwidth: Any
    """Bytes/s when weights are streamed."""
    kv_bandwidth: Any
    elementwise_bandwidth: Any
    layer_overhead: Any
    """Seconds a layer."""
    link: Any
    """Bytes/s of NCCL's bus bandwidth inside the instance."""
    reduce_latency: Any
    """Seconds of a small all-reduce over the t GPUs."""
    network: Any
    """Bytes/s between instances."""
    network_latency: Any
    """Seconds a message."""

    def pick(self, choice: Any) -> Rates:
        """The entries that `choice` indexes."""
        return Rates(*(figures[choice] for figures in self))


def rates_of(model: ModelSpec, stages: Sequence[tuple[InstanceType, int]]) -> Rates:
    """One array entry for each (instance type, tensor-parallel degree)."""
    columns = zip(*(_rates(model, instance, t) for instance, t in stages), strict=True)
    return Rates(*(np.array(column) for column in columns))


def _rates(model: ModelSpec, instance: InstanceType, t: int) -> Rates:
    gpu, share = instance.gpu, instance.gpu.efficiency
    return Rates(
        t=t,
        kv_heads=max(model.kv_heads / t, 1.0),
        matrix_flops=gpu.flops_for(_arithmetic(model)) * share.gemm,
        half_flops=gpu.flops_for(model.dtype) * share.gemm,
        attention_flops=gpu.flops_for(model.dtype) * share.attention,
        bandwidth=gpu.memory_bandwidth * share.bandwidth,
        kv_bandwidth=gpu.memory_bandwidth * share.kv_bandwidth,
        elementwise_bandwidth=gpu.memory_bandwidth * share.elementwise,
        layer_overhead=share.layer_overhead,
        link=instance.link.bandwidth,
        reduce_latency=_reduce_latency(instance, t),
        network=instance.network.bandwidth,
        network_latency=instance.network.latency,
    )


def _arithmetic(model: ModelSpec) -> str:
    """The type that matrix products run in: the weights', where it is an 8-bit one.

    4-bit weights are dequantised first, and so are 8-bit ones where the GPU lacks the type
    (`GpuSpec.flops_for` then answers with the half-precision rate).
    """
    return model.weight_dtype if model.weight_dtype in ("fp8", "int8") else model.dtype


def _reduce_latency(instance: InstanceType, t: int) -> float:
    """A small all-reduce over t of the instance's GPUs.

    `Link.latency` is for all of them; a ring of t makes 2(t − 1) hops.
    """
    if t == 1:
        return 0.0
    base = min(LAUNCH_LATENCY, instance.link.latency)
    hops = (t - 1) / max(instance.gpu_count - 1, 1)
    return base + (instance.link.latency - base) * hops
