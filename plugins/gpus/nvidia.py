"""NVIDIA GPUs: figures, how much of them operators reach, the links between them, and sources.

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

Links: PCIe bandwidths, and NVLink's of A100 and H100, are measured (arXiv 2606.18600).  V100:
NCCL's published 8-GPU figure on NVLink 2.  H200 as H100.  The latencies over NVLink are NCCL's for
a few kilobytes (0.02 to 0.055 ms in Vidur's profiles of A100, H100 and V100).
"""

from shuntserve_core.types import Efficiency, GpuSpec
from shuntserve_plugins.gpus.links import Card, over_nvlink, over_pcie

_MEASURED = "measured, arXiv 2606.18600"
_SHEET = "NVIDIA data sheet"

CARDS = (
    Card(
        link=over_pcie(6e9),
        spec=GpuSpec(
            name="T4",
            memory_bytes=16_000_000_000,
            flops={"float16": 65e12, "int8": 130e12},
            memory_bandwidth=320e9,
            efficiency=Efficiency(
                gemm=0.4,
                attention=0.22,
                bandwidth=0.75,
                kv_bandwidth=0.6,
                elementwise=0.7,
                layer_overhead=80e-6,
                source="power; jia; attention, KV and element-wise assumed",
            ),
            source="data sheet, as in arXiv 2606.18600",
        ),
    ),
    Card(
        link=over_nvlink(130e9, 0.055e-3),
        spec=GpuSpec(
            name="V100",
            memory_bytes=16_000_000_000,
            flops={"float16": 125e12},
            memory_bandwidth=900e9,
            efficiency=Efficiency(
                gemm=0.74,
                attention=0.32,
                bandwidth=0.83,
                kv_bandwidth=0.65,
                elementwise=0.52,
                layer_overhead=80e-6,
                source="markidis; jia; vidur (HBM); attention and KV assumed",
            ),
            source=_SHEET + " (SXM2, 16 GB)",
        ),
    ),
    Card(
        link=over_pcie(1.4e9),
        spec=GpuSpec(
            name="A10G",
            memory_bytes=22_494_000_000,
            flops={"float16": 70e12, "bfloat16": 70e12, "int8": 140e12},
            memory_bandwidth=480e9,
            efficiency=Efficiency(
                gemm=0.95,
                attention=0.65,
                bandwidth=0.97,
                kv_bandwidth=0.88,
                elementwise=0.95,
                layer_overhead=60e-6,
                source="published; vidur (A40)",
            ),
            source=_MEASURED,
        ),
    ),
    Card(
        link=over_pcie(3.5e9),
        spec=GpuSpec(
            name="L4",
            memory_bytes=22_494_000_000,
            flops={"float16": 55e12, "bfloat16": 55e12, "fp8": 110e12, "int8": 110e12},
            memory_bandwidth=250e9,
            efficiency=Efficiency(
                gemm=0.95,
                attention=0.65,
                bandwidth=0.98,
                kv_bandwidth=0.9,
                elementwise=0.91,
                layer_overhead=60e-6,
                source="published; vidur (A40)",
            ),
            source=_MEASURED,
        ),
    ),
    Card(
        link=over_pcie(3.5e9),
        spec=GpuSpec(
            name="L40S",
            memory_bytes=44_988_000_000,
            flops={"float16": 196e12, "bfloat16": 196e12, "fp8": 392e12, "int8": 392e12},
            memory_bandwidth=700e9,
            efficiency=Efficiency(
                gemm=0.99,
                attention=0.53,
                bandwidth=0.99,
                kv_bandwidth=0.9,
                elementwise=0.93,
                layer_overhead=60e-6,
                source="published; vidur (A40)",
            ),
            source=_MEASURED,
        ),
    ),
    Card(
        link=over_nvlink(220e9, 0.03e-3),
        spec=GpuSpec(
            name="A100",
            memory_bytes=40_000_000_000,
            flops={"float16": 265e12, "bfloat16": 265e12, "int8": 530e12},
            memory_bandwidth=1280e9,
            efficiency=Efficiency(
                gemm=0.9,
                attention=0.6,
                bandwidth=0.98,
                kv_bandwidth=0.85,
                elementwise=0.64,
                layer_overhead=60e-6,
                source="vidur (A100 80 GB); flash-attention 2, KV assumed",
            ),
            source=_MEASURED,
        ),
    ),
    Card(
        link=over_nvlink(220e9, 0.03e-3),
        spec=GpuSpec(
            name="A100-80GB",
            memory_bytes=79_647_000_000,
            flops={"float16": 312e12, "bfloat16": 312e12, "int8": 624e12},
            memory_bandwidth=2039e9,
            efficiency=Efficiency(
                gemm=0.77,
                attention=0.51,
                bandwidth=0.8,
                kv_bandwidth=0.68,
                elementwise=0.52,
                layer_overhead=60e-6,
                source="vidur; flash-attention 2, KV assumed",
            ),
            source=_SHEET + " (SXM)",
        ),
    ),
    Card(
        link=over_nvlink(393e9, 0.02e-3),
        spec=GpuSpec(
            name="H100",
            memory_bytes=79_647_000_000,
            flops={"float16": 989.5e12, "bfloat16": 989.5e12, "fp8": 1979e12, "int8": 1979e12},
            memory_bandwidth=3350e9,
            efficiency=Efficiency(
                gemm=0.7,
                attention=0.5,
                bandwidth=0.85,
                kv_bandwidth=0.75,
                elementwise=0.55,
                layer_overhead=60e-6,
                source="vidur; flash-attention 3, bandwidth assumed",
            ),
            source="data sheet (SXM), as in arXiv 2606.18600",
        ),
    ),
    Card(
        link=over_nvlink(393e9, 0.02e-3),
        spec=GpuSpec(
            name="H200",
            memory_bytes=140_000_000_000,
            flops={"float16": 989.5e12, "bfloat16": 989.5e12, "fp8": 1979e12, "int8": 1979e12},
            memory_bandwidth=4.8e12,
            efficiency=Efficiency(
                gemm=0.7,
                attention=0.5,
                bandwidth=0.82,
                kv_bandwidth=0.75,
                elementwise=0.5,
                layer_overhead=60e-6,
                source="as H100; memory shares assumed",
            ),
            source=_SHEET + " (SXM)",
        ),
    ),
)
"""By generation."""
