"""What can be rented, down to the figures that a roofline needs."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen
from attrs.validators import ge, gt


@frozen
class Link:
    """A connection between GPUs of one instance, or between instances."""

    bandwidth: float = field(validator=gt(0))
    """Bytes per second that each GPU (or instance) gets for large messages."""
    latency: float = field(default=0.0, validator=ge(0))
    """Seconds that a message takes however small it is.  Inside an instance this is the time of
    one small all-reduce over all its GPUs; between instances, of one message."""


@frozen
class Efficiency:
    """How much of a GPU's sustained figures an operator reaches, and what each launch costs.

    The `roofline` estimator multiplies `GpuSpec.flops` and `GpuSpec.memory_bandwidth` by these;
    the `paper` estimator does not look at them.
    """

    gemm: float = field(default=1.0, validator=gt(0))
    """Share of FLOP/s that large matrix products sustain under the GPU's power limit."""
    attention: float = field(default=0.5, validator=gt(0))
    """Share of FLOP/s in prefill attention, counting the causal half only."""
    bandwidth: float = field(default=1.0, validator=gt(0))
    """Share of memory bandwidth when a matrix product streams weights (decode)."""
    kv_bandwidth: float = field(default=0.8, validator=gt(0))
    """Share of memory bandwidth when decode attention reads the KV cache."""
    elementwise: float = field(default=0.7, validator=gt(0))
    """Share of memory bandwidth in norms, rotary embeddings, activations and residual sums."""
    layer_overhead: float = field(default=0.0, validator=ge(0))
    """Seconds a layer costs on top of its operators: starts and ends of about twelve kernels."""
    source: str = ""
    """Where the factors come from."""


@frozen
class GpuSpec:
    """One GPU, as a roofline sees it."""

    name: str
    memory_bytes: int = field(validator=gt(0))
    """Bytes of device memory that an engine can use."""
    flops: Mapping[str, float]
    """Sustained dense FLOP/s by arithmetic type (`float16`, `bfloat16`, `fp8`, `int8`...)."""
    memory_bandwidth: float = field(validator=gt(0))
    """Sustained bytes per second of device memory."""
    efficiency: Efficiency = field(factory=Efficiency)
    source: str = ""
    """Where the figures come from."""

    def flops_for(self, dtype: str) -> float:
        """FLOP/s of matrix products in `dtype`.

        A type without a rate of its own runs at the half-precision rate, as engines do when they
        dequantise first; float32 at half of that.
        """
        if dtype in self.flops:
            return self.flops[dtype]
        half = self.flops.get("float16") or self.flops.get("bfloat16")
        if half is None:
            return max(self.flops.values())
        return half / 2 if dtype == "float32" else half


@frozen
class InstanceType:
    """What a cloud rents: GPUs, the links around them, and the price."""

    name: str
    gpu: GpuSpec
    gpu_count: int = field(validator=ge(1))
    link: Link
    """Between the GPUs of one instance."""
    network: Link
    """Between instances."""
    price: float = field(default=0.0, validator=ge(0))
    """On demand, $ per hour."""
    spot_price: float | None = None
    """Spot, $ per hour; None where it is not offered or not known."""
    cloud: str = ""
    """Whose it is: `aws`, `gcp`..., empty for machines of one's own."""

    @property
    def tensor_parallel_degrees(self) -> tuple[int, ...]:
        """Degrees that a stage can use on this instance: powers of two, and all the GPUs."""
        powers = {1 << i for i in range(self.gpu_count.bit_length()) if 1 << i <= self.gpu_count}
        return tuple(sorted(powers | {self.gpu_count}))
