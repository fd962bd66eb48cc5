"""Hardware and models at the ends of what a file may say: planned, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shuntserve_core.cli.common import naming
from shuntserve_core.config import config_from_data, optimizer_from, problem_from
from shuntserve_core.errors import UserError, UserErrorGroup
from shuntserve_core.placement_json import placement_to_json
from shuntserve_core.registry import Registry

REGISTRY = Registry()


def between(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers spread over orders of magnitude, ends included."""
    return st.sampled_from([low, high]) | st.floats(0, 1).map(
        lambda share: low * (high / low) ** share
    )


def whole(low: int, high: int) -> st.SearchStrategy[int]:
    return between(low, high).map(lambda value: min(max(round(value), low), high))


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    """A well-formed file with arbitrary figures."""
    heads = draw(st.sampled_from([1, 3, 8, 64]))
    link = {"bandwidth": draw(between(1, 1e21)), "latency": draw(st.floats(0, 1e3))}
    return {
        "model": {
            "name": "any",
            "layers": draw(whole(1, 40)),
            "hidden": 64 * heads,
            "heads": heads,
            "kv_heads": draw(st.sampled_from([1, heads])),
            "head_dim": draw(whole(1, 1024)),
            "intermediate": draw(whole(1, 10**6)),
            "vocab": draw(whole(1, 10**7)),
            "max_positions": 10**9,
        },
        "workload": {
            "input_tokens": draw(whole(1, 10**5)),
            "output_tokens": draw(whole(1, 10**4)),
            "max_length": draw(whole(10**6, 10**7)) if draw(st.booleans()) else 120_000,
        },
        "gpu": [
            {
                "name": "any",
                "memory_bytes": draw(whole(1, 10**13)),
                "flops": {"float16": draw(between(1, 1e21))},
                "memory_bandwidth": draw(between(1, 1e21)),
            }
        ],
        "instance_type": [
            {
                "name": "any",
                "gpu": "any",
                "gpu_count": draw(st.integers(1, 9)),
                "link": link,
                "network": link,
                "price": draw(st.sampled_from([0.0, 1.0, 1e9])),
            }
        ],
        "cluster": [{"instance": "any", "count": draw(st.integers(0, 3))}],
        "optimizer": {"time_limit": 5},
    }


@pytest.mark.parametrize("estimator", ["paper", "roofline"])
@pytest.mark.parametrize("optimizer", ["single-pipeline", "beam-search"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=files())
def test_planned_or_refused(optimizer: str, estimator: str, data: dict[str, Any]) -> None:
    try:
        config = config_from_data(data, Path("any.toml"), REGISTRY)
        with naming("any.toml"):
            problem = problem_from(config, estimator)
            placement = optimizer_from(config, optimizer).place(problem)
    except UserError as error:
        check_refusal(error)
    else:
        assert placement.throughput_rps > 0
        assert json.dumps(placement_to_json(placement, config.workload), allow_nan=False)


def check_refusal(error: UserError) -> None:
    assert not isinstance(error, UserErrorGroup)
    assert len(str(error).splitlines()) == 1
    assert error.remedy
