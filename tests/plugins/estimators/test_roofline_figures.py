"""The roofline against figures that others measured, operator by operator."""

from __future__ import annotations

import statistics

import pytest

from shuntserve_core.registry import Registry
from shuntserve_core.types import Efficiency, GpuSpec, InstanceType, Link, ModelSpec
from shuntserve_plugins.estimators.roofline.collectives import all_reduce
from shuntserve_plugins.estimators.roofline.hardware import Rates, rates_of
from shuntserve_plugins.estimators.roofline.operators import Operators
from shuntserve_plugins.estimators.roofline.parts import roofline

LLAMA_2_70B = ModelSpec("llama-2-70b", 80, 8192, 64, 8, 128, 28672, 32000)
PRODUCTS = ("qkv", "o", "gate-up", "down")
NETWORK = Link(5e9, 1e-3)

# Milliseconds of the products with (qkv, o, gate and up, down) of Llama-2-70B on one GPU, by number
# of tokens: Vidur's operator profiles (arXiv 2405.05465, MIT licence), means of 20 runs.
VIDUR = {
    "A100-80GB": {
        1: (0.1103, 0.0923, 0.5789, 0.2909),
        16: (0.1180, 0.0932, 0.6095, 0.2918),
        64: (0.1163, 0.0971, 0.6029, 0.3072),
        128: (0.1353, 0.1203, 0.7202, 0.3223),
        136: (0.2187, 0.1486, 1.0681, 0.5015),
        200: (0.2249, 0.1780, 1.0896, 0.5444),
        256: (0.2388, 0.1868, 1.1535, 0.5348),
        264: (0.3331, 0.2366, 1.5831, 0.8110),
        360: (0.3503, 0.2446, 1.6428, 0.8231),
        3584: (2.663, 2.176, 14.244, 7.069),
        4096: (2.865, 2.374, 15.877, 8.043),
    },
    "A40": {
        1: (0.3073, 0.2461, 1.8327, 0.8144),
        16: (0.3148, 0.2865, 1.7004, 0.8685),
        64: (0.3343, 0.2857, 1.8258, 0.9232),
        128: (0.3386, 0.2772, 1.8944, 0.9108),
        136: (0.3539, 0.3598, 2.0069, 1.0228),
        200: (0.3787, 0.4077, 2.6290, 1.2354),
        256: (0.3793, 0.4163, 2.1914, 1.1229),
        264: (0.5631, 0.5377, 2.9461, 2.5040),
        352: (0.5768, 0.5461, 3.0012, 2.4763),
        640: (0.9208, 0.7440, 5.0387, 4.0879),
        3808: (5.630, 4.422, 29.268, 15.669),
        4096: (5.974, 4.698, 37.092, 16.854),
    },
    "H100": {
        3456: (0.8436, 0.7055, 4.6301, 2.2536),
        4096: (0.9796, 0.7889, 5.6365, 2.5860),
    },
}
# Milliseconds at 4,096 tokens of two norms, two residual sums, rotary embedding and activation.
VIDUR_ELEMENTWISE = {"A100-80GB": 1.444, "A40": 2.875, "H100": 0.828}

GPUS = Registry().gpus
A40 = GpuSpec(
    "A40",
    48_000_000_000,
    {"float16": 149.7e12},
    696e9,
    Efficiency(gemm=0.74, bandwidth=0.80, elementwise=0.76),
)


def rates(gpu: str, count: int = 1, t: int = 1) -> Rates:
    spec = A40 if gpu == "A40" else GPUS[gpu]
    link = Link(3.5e9, 0.145e-3)
    return rates_of(LLAMA_2_70B, [(InstanceType("x", spec, count, link, NETWORK), t)]).pick(0)


def products_ms(gpu: str, tokens: int) -> float:
    parts = Operators(LLAMA_2_70B).linear(rates(gpu), tokens)
    return sum(float(parts[name].seconds) for name in PRODUCTS) * 1e3


@pytest.mark.parametrize("gpu", VIDUR)
def test_products_of_a_layer(gpu: str) -> None:
    errors = {
        tokens: products_ms(gpu, tokens) / sum(measured) - 1
        for tokens, measured in VIDUR[gpu].items()
    }
    assert statistics.median(map(abs, errors.values())) < 0.06
    assert max(map(abs, errors.values())) < 0.22, errors


@pytest.mark.parametrize(("gpu", "milliseconds"), VIDUR_ELEMENTWISE.items())
def test_elementwise_work_of_a_layer(gpu: str, milliseconds: float) -> None:
    part = Operators(LLAMA_2_70B).linear(rates(gpu), 4096)["element-wise"]
    assert float(part.seconds) * 1e3 == pytest.approx(milliseconds, rel=0.1)


# Micro-benchmarks published with ShuntServe (arXiv 2606.18600): least and most.
@pytest.mark.parametrize(
    ("gpu", "least", "most"), [("L4", 49, 56), ("A10G", 64, 69), ("L40S", 182, 208)]
)
def test_sustained_matrix_products(gpu: str, least: float, most: float) -> None:
    tokens = 8192
    flops = 2 * tokens * 3 * LLAMA_2_70B.hidden * LLAMA_2_70B.intermediate
    parts = Operators(LLAMA_2_70B).linear(rates(gpu), tokens)
    seconds = float(parts["gate-up"].seconds + parts["down"].seconds)
    assert least <= flops / seconds / 1e12 <= most


@pytest.mark.parametrize(
    ("gpu", "least", "most"), [("L4", 234, 258), ("A10G", 441, 488), ("L40S", 674, 713)]
)
def test_sustained_matrix_vector_products(gpu: str, least: float, most: float) -> None:
    moved = 2 * 3 * LLAMA_2_70B.hidden * LLAMA_2_70B.intermediate
    parts = Operators(LLAMA_2_70B).linear(rates(gpu), 1)
    seconds = float(parts["gate-up"].seconds + parts["down"].seconds)
    assert least <= moved / seconds / 1e9 <= most


@pytest.mark.parametrize(
    ("gpu", "least", "most"), [("L4", 56, 92), ("A10G", 80, 111), ("L40S", 142, 275)]
)
def test_prefill_attention(gpu: str, least: float, most: float) -> None:
    """The published figures count masked products too: twice what causal attention computes."""
    tokens = 8192
    pairs = tokens * (tokens + 1) / 2
    seconds = Operators(LLAMA_2_70B).prefill_attention(rates(gpu), pairs, tokens).seconds
    assert least <= 8 * LLAMA_2_70B.q_size * pairs / float(seconds) / 1e12 <= most


def test_small_all_reduce_over_pcie_takes_its_latency() -> None:
    seconds = float(all_reduce(rates("L4", 8, 8), 16 * 1024).seconds)
    assert seconds == pytest.approx(0.145e-3, rel=0.1)


def test_large_all_reduce_over_pcie_takes_the_bandwidth() -> None:
    size = 64e6
    seconds = float(all_reduce(rates("L4", 8, 8), size).seconds)
    assert 2 * 7 / 8 * size / seconds == pytest.approx(3.5e9, rel=0.02)


def test_all_reduce_of_two_megabytes_over_pcie() -> None:
    size = 2 * 2**20
    seconds = float(all_reduce(rates("L4", 8, 8), size).seconds)
    assert 2 * 7 / 8 * size / seconds == pytest.approx(3.3e9, rel=0.15)


def test_a_link_of_more_gpus_has_more_latency() -> None:
    instances = Registry().instance_types
    latency = [instances[name].link.latency for name in ("g6.12xlarge", "g6.48xlarge")]
    assert latency[0] < latency[1] == pytest.approx(0.145e-3)


def test_the_roofline_is_plain_away_from_the_ridge_and_a_quarter_more_at_it() -> None:
    assert roofline(1.0, 0.01).seconds == pytest.approx(1.0, rel=1e-5)
    assert roofline(0.01, 1.0).seconds == pytest.approx(1.0, rel=1e-5)
    assert roofline(1.0, 1.0).seconds == pytest.approx(2 ** (1 / 3))
