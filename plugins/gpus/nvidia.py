"""NVIDIA GPUs: figures, how much of them operators reach, and where each number is from.

Memory, half-precision FLOP/s and bandwidth of T4, A10G, L4, L40S, A100 and H100 are those published
with ShuntServe (arXiv 2606.18600), which the `paper` estimator needs as they are; the others are
data-sheet figures.  Where a published figure is the data sheet's (T4, H100), the efficiency is what
lowers it to what is sustained.  8-bit rates are the half-precision figure times the data sheet's
ratio of tensor-core rates, which is 2 wherever the GPU has the type at all.

Sources, by the names used below:

* `published`: micro-benchmarks of arXiv 2606.18600: GEMM, GEMV and flash attention.  Attention is
  halved, as the published figures count the masked half of the products too.
* `vidur`: operator profiles of Llama-2-70B's matrices on A100 80 GB, A40 and H100 of Vidur
  (arXiv 2405.05465, MIT).  At 4,096 tokens they sustain 240, 111 and 690 TFLOP/s, which is 77, 74
  and 70 % of the data sheet; streaming weights takes 80 % of the data sheet's bandwidth on A100 and
  A40 alike; element-wise kernels move 52 % (A100), 55 % (H100) and 76 % (A40, GDDR6) of it; and
  kernels with next to no work take 2 to 8 microseconds each, 60 in all for a layer.
* `jia`: microbenchmarks of Turing (arXiv 1903.07486) and Volta (arXiv 1804.06826): global memory
  sustains about three quarters (T4) and 83 to 90 % (V100) of the data sheet.
* `markidis`: cuBLAS on V100 tensor cores reaches 74 % of the peak (arXiv 1803.04014).
* `power`: a T4 held to 70 W sustains 24 TFLOP/s in a half-precision cuBLAS product of size 4,096
  (NVIDIA developer forum, thread 264462); 26 is used, as inference pauses between products.
* `assumed`: by likeness to a GPU that was measured; nobody measured this one for us.
"""

from shuntserve_core.types import Efficiency, GpuSpec

_MEASURED = "measured, arXiv 2606.18600"
_SHEET = "NVIDIA data sheet"
_LAYER_OVERHEAD = 60e-6


def _efficiency(
    gemm: float,
    attention: float,
    bandwidth: float,
    kv: float,
    elementwise: float,
    source: str,
    overhead: float = _LAYER_OVERHEAD,
) -> Efficiency:
    return Efficiency(gemm, attention, bandwidth, kv, elementwise, overhead, source)


GPUS = (
    GpuSpec(
        "T4",
        16_000_000_000,
        {"float16": 65e12, "int8": 130e12},
        320e9,
        _efficiency(
            0.40,
            0.22,
            0.75,
            0.60,
            0.70,
            "power; jia; attention, KV and element-wise assumed",
            80e-6,
        ),
        source="data sheet, as in arXiv 2606.18600",
    ),
    GpuSpec(
        "V100",
        16_000_000_000,
        {"float16": 125e12},
        900e9,
        _efficiency(
            0.74,
            0.32,
            0.83,
            0.65,
            0.52,
            "markidis; jia; vidur (HBM); attention and KV assumed",
            80e-6,
        ),
        source=_SHEET + " (SXM2, 16 GB)",
    ),
    GpuSpec(
        "A10G",
        22_494_000_000,
        {"float16": 70e12, "bfloat16": 70e12, "int8": 140e12},
        480e9,
        _efficiency(0.95, 0.65, 0.97, 0.88, 0.95, "published; vidur (A40)"),
        source=_MEASURED,
    ),
    GpuSpec(
        "L4",
        22_494_000_000,
        {"float16": 55e12, "bfloat16": 55e12, "fp8": 110e12, "int8": 110e12},
        250e9,
        _efficiency(0.95, 0.65, 0.98, 0.90, 0.91, "published; vidur (A40)"),
        source=_MEASURED,
    ),
    GpuSpec(
        "L40S",
        44_988_000_000,
        {"float16": 196e12, "bfloat16": 196e12, "fp8": 392e12, "int8": 392e12},
        700e9,
        _efficiency(0.99, 0.53, 0.99, 0.90, 0.93, "published; vidur (A40)"),
        source=_MEASURED,
    ),
    GpuSpec(
        "A100",
        40_000_000_000,
        {"float16": 265e12, "bfloat16": 265e12, "int8": 530e12},
        1280e9,
        _efficiency(
            0.90, 0.60, 0.98, 0.85, 0.64, "vidur (A100 80 GB); flash-attention 2, KV assumed"
        ),
        source=_MEASURED,
    ),
    GpuSpec(
        "A100-80GB",
        79_647_000_000,
        {"float16": 312e12, "bfloat16": 312e12, "int8": 624e12},
        2039e9,
        _efficiency(0.77, 0.51, 0.80, 0.68, 0.52, "vidur; flash-attention 2, KV assumed"),
        source=_SHEET + " (SXM)",
    ),
    GpuSpec(
        "H100",
        79_647_000_000,
        {"float16": 989.5e12, "bfloat16": 989.5e12, "fp8": 1979e12, "int8": 1979e12},
        3350e9,
        _efficiency(0.70, 0.50, 0.85, 0.75, 0.55, "vidur; flash-attention 3, bandwidth assumed"),
        source="data sheet (SXM), as in arXiv 2606.18600",
    ),
    GpuSpec(
        "H200",
        140_000_000_000,
        {"float16": 989.5e12, "bfloat16": 989.5e12, "fp8": 1979e12, "int8": 1979e12},
        4800e9,
        _efficiency(0.70, 0.50, 0.82, 0.75, 0.50, "as H100; memory shares assumed"),
        source=_SHEET + " (SXM)",
    ),
)
