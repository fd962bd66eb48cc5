"""The layer that is measured computes what a transformer layer computes."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve

from shuntserve_core.errors import UserError
from shuntserve_core.measure.layer import LayerBench, describe_device
from shuntserve_core.types import ModelSpec

MODEL = ModelSpec(
    "small", 2, 64, 4, 2, 16, 96, 100, dtype="float32", weight_dtype="float32", kv_dtype="float32"
)


def bench(model: ModelSpec = MODEL) -> LayerBench:
    return LayerBench(model, device="cpu", budget=0.0)


def test_outputs_have_the_shape_of_the_residual_stream() -> None:
    for output, rows in ((bench().prefill_run(7)(), 7), (bench().decode_run(3, 5)(), 3)):
        assert output.shape == (rows, MODEL.hidden)
        assert output.isfinite().all()


def test_a_prompt_attends_to_what_is_before_it() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(5, 4, 16), torch.randn(5, 2, 16), torch.randn(5, 2, 16)
    out = bench()._attend_prompt(q, k, v)
    for token in range(5):
        for head in range(4):
            keys, values = k[: token + 1, head // 2], v[: token + 1, head // 2]
            weights = torch.softmax(keys @ q[token, head] / 4.0, 0)
            torch.testing.assert_close(out[token, head], weights @ values)


def test_a_decode_step_attends_to_the_cache_and_itself() -> None:
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 4, 16), torch.randn(3, 2, 16), torch.randn(3, 2, 16)
    keys, values = torch.randn(3, 2, 6, 16), torch.randn(3, 2, 6, 16)
    out = bench()._attend_cache(q, k, v, keys, values)
    assert torch.equal(keys[:, :, -1], k)
    weights = torch.softmax(keys[2, 1] @ q[2, 3] / 4.0, 0)
    torch.testing.assert_close(out[2, 3], weights @ values[2, 1])


def test_seconds_are_positive() -> None:
    assert bench().prefill(4) > 0
    assert bench().decode(2, 3) > 0


def test_quantised_layers_are_refused() -> None:
    with pytest.raises(UserError, match="quantised layer cannot be measured"):
        bench(evolve(MODEL, weight_dtype="int4"))


def test_the_device_has_a_name() -> None:
    assert describe_device("cpu").startswith("CPU, ")
