"""Hardware figures: what is listed, that each names its source, and the published ones."""

from __future__ import annotations

import pytest

from shuntserve_core.registry import Registry

REGISTRY = Registry()
PUBLISHED = {
    "T4": (16_000e6, 65e12, 320e9),
    "A10G": (22_494e6, 70e12, 480e9),
    "L4": (22_494e6, 55e12, 250e9),
    "L40S": (44_988e6, 196e12, 700e9),
    "A100": (40_000e6, 265e12, 1_280e9),
    "H100": (79_647e6, 989.5e12, 3_350e9),
}
DATA_SHEET_BANDWIDTH = {
    "T4": 320e9,
    "V100": 900e9,
    "A10G": 600e9,
    "L4": 300e9,
    "L40S": 864e9,
    "A100": 1555e9,
    "A100-80GB": 2039e9,
    "H100": 3350e9,
    "H200": 4800e9,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures_are_kept(name: str) -> None:
    gpu = REGISTRY.gpus[name]
    assert (gpu.memory_bytes, gpu.flops["float16"], gpu.memory_bandwidth) == PUBLISHED[name]


@pytest.mark.parametrize("name", REGISTRY.gpus)
def test_every_figure_names_its_source(name: str) -> None:
    gpu = REGISTRY.gpus[name]
    assert gpu.source
    assert gpu.efficiency.source


@pytest.mark.parametrize("name", DATA_SHEET_BANDWIDTH)
def test_no_operator_moves_more_than_the_memory_can(name: str) -> None:
    gpu = REGISTRY.gpus[name]
    share = gpu.efficiency
    fastest = max(share.bandwidth, share.kv_bandwidth, share.elementwise) * gpu.memory_bandwidth
    assert fastest < 0.9 * DATA_SHEET_BANDWIDTH[name]


def test_eight_bit_rates_are_where_the_silicon_is() -> None:
    with_fp8 = {name for name, gpu in REGISTRY.gpus.items() if "fp8" in gpu.flops}
    assert with_fp8 == {"L4", "L40S", "H100", "H200"}


def test_every_gpu_can_be_rented() -> None:
    rented = {kind.gpu.name for kind in REGISTRY.instance_types.values()}
    assert rented == set(REGISTRY.gpus)


def test_prices_and_clouds() -> None:
    for name, kind in REGISTRY.instance_types.items():
        assert (kind.price > 0) == (name != "local")
        assert kind.cloud == ("" if name == "local" else "aws" if "." in name else "gcp")
        assert kind.spot_price is None or kind.spot_price < kind.price
