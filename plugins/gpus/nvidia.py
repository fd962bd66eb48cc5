"""NVIDIA GPUs.

Memory, FLOP/s and bandwidth are sustained figures, not data-sheet ones: those of T4, A10G, L4,
L40S, A100 and H100 are the measurements published with ShuntServe (arXiv 2606.18600).
"""

from shuntserve_core.types import GpuSpec

_MEASURED = "measured, arXiv 2606.18600"


def _gpu(name: str, memory: int, half: float, bandwidth: float, **flops: float) -> GpuSpec:
    rates = {"float16": half, "bfloat16": half, **flops}
    return GpuSpec(name, memory, rates, bandwidth, source=_MEASURED)


GPUS = (
    GpuSpec("T4", 16_000_000_000, {"float16": 65e12, "int8": 130e12}, 320e9, source=_MEASURED),
    _gpu("A10G", 22_494_000_000, 70e12, 480e9),
    _gpu("L4", 22_494_000_000, 55e12, 250e9),
    _gpu("L40S", 44_988_000_000, 196e12, 700e9),
    _gpu("A100", 40_000_000_000, 265e12, 1280e9),
    _gpu("H100", 79_647_000_000, 989.5e12, 3350e9),
)
