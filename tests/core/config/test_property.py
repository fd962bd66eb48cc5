"""Whatever stands in a file: it is read, or every mistake is a line.  Never anything else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.config import config_from_data
from shuntserve_core.config.loader import read_toml
from shuntserve_core.errors import UserError, UserErrorGroup
from shuntserve_core.registry import Registry

REGISTRY = Registry()
SOUND: dict[str, Any] = {
    "model": {"name": "Qwen3-8B", "kv_dtype": "fp8"},
    "workload": {"input_tokens": 100, "output_tokens": 20, "max_length": 4096},
    "cluster": [
        {"instance": "g6e.xlarge", "count": 2},
        {"instance": "box", "count": 1, "market": "on-demand", "price": 1.5},
    ],
    "objective": {"kind": "cost", "rate": 1.0, "slo": {"ttft": 2.0, "mode": "hard"}},
    "estimator": {"name": "paper", "memory_fraction": 0.8},
    "optimizer": {"name": "exact", "whole_instances": True, "time_limit": 5},
    "gpu": [
        {
            "name": "X1",
            "memory_bytes": 24e9,
            "flops": {"float16": 1e14},
            "memory_bandwidth": 1e12,
            "efficiency": {"gemm": 0.9},
        }
    ],
    "instance_type": [{"name": "box", "gpu": "X1", "link": {"bandwidth": 1e10}}],
    "plugins": {"disable": ["bundled-storage"], "require": ["bundled-gpus"]},
}

junk = st.recursive(
    st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["exact", "g6e.xlarge", "X1", "box", "../..", "a/b", "fp8", "\n", "[", "'"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a nested value, by its keys."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = value.keys()
    elif isinstance(value, list):
        keys = range(len(value))
    return [path, *(place for key in keys for place in places(value[key], (*path, key)))]


PLACES = [place for place in places(SOUND) if place]


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """The sound file with one to three keys replaced, removed or added."""
    data = copy.deepcopy(SOUND)
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from(PLACES))
        target: Any = data
        try:
            for key in path:
                target = target[key]
            action = draw(st.sampled_from(["replace", "remove", "add"]))
            if action == "replace":
                target[last] = draw(junk)
            elif action == "remove":
                del target[last]
            else:
                target[draw(st.text(max_size=8))] = draw(junk)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier mutation took that place away
    return data


def check_error(error: UserError, file: str) -> None:
    lines = error.errors if isinstance(error, UserErrorGroup) else (error,)
    for line in lines:
        assert len(str(line).splitlines()) == 1
        assert line.where.startswith(file)
        assert line.message
        assert line.remedy


@settings(max_examples=300, deadline=None)
@given(data=mutated())
def test_a_mutated_file_is_read_or_explained(data: dict[str, Any]) -> None:
    try:
        config = config_from_data(data, Path("cluster.toml"), REGISTRY)
    except UserError as error:
        check_error(error, "cluster.toml")
    else:
        assert config.model.layers >= 1
        assert config.workload.input_tokens >= 1
        assert config.cluster.offers


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
def test_any_bytes_are_read_or_explained(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("property") / "cluster.toml"
    file.write_bytes(content)
    try:
        read_toml(file)
    except UserError as error:
        check_error(error, str(file))


def test_the_sound_file_is_sound() -> None:
    config = config_from_data(SOUND, Path("cluster.toml"), REGISTRY)
    assert config.cluster.counts == {"g6e.xlarge": 2, "box": 1}
    assert config.cluster.prices["box"] == 1.5
    assert config.instance_types["box"].gpu.memory_bytes == 24_000_000_000
    assert config.model.kv_dtype == "fp8"
    assert config.objective.slo.mode == "hard"
