"""The JSON form of a placement gives back an equal placement, and refuses what is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.errors import UserError
from shuntserve_core.placement_json import (
    cost_per_million_tokens,
    placement_from_json,
    placement_to_json,
    read_placement,
)
from shuntserve_core.types import Estimate, Pipeline, Placement, Stage, StageEstimate, Workload

WORKLOAD = Workload(750, 250)
seconds = st.floats(0, 1e9) | st.just(math.inf)
counts = st.integers(0, 10**9)
stage_estimates = st.builds(
    StageEstimate,
    batch_limit=counts,
    prefill_seconds=seconds,
    decode_seconds=seconds,
    memory_bytes=st.floats(0, 1e15),
    kv_room_bytes=st.floats(0, 1e15),
    working_bytes=st.floats(0, 1e15),
    bound=st.sampled_from(["compute", "memory bandwidth"]),
    breakdown=st.dictionaries(st.text(max_size=5), seconds, max_size=2),
)
stages = st.builds(
    Stage,
    instance=st.text(max_size=5),
    tensor_parallel=st.integers(1, 8),
    layers=st.integers(1, 99),
    node=st.text(max_size=5),
    gpus=st.lists(st.integers(0, 7), max_size=3).map(tuple),
)


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    cut = draw(st.lists(stages, min_size=1, max_size=3))
    return Pipeline(
        tuple(cut),
        Estimate(
            throughput_rps=draw(st.floats(0, 1e6)),
            batch=draw(counts),
            kv_blocks=draw(counts),
            ttft=draw(seconds),
            tpot=draw(seconds),
            latency=draw(seconds),
            stages=tuple(draw(stage_estimates) for _ in cut),
            reason=draw(st.text(max_size=5)),
        ),
    )


placements = st.builds(
    Placement,
    pipelines=st.lists(pipelines(), max_size=3).map(tuple),
    unused=st.dictionaries(st.text(max_size=5), counts, max_size=2),
    cost_per_hour=st.floats(0, 1e6),
    optimizer=st.text(max_size=5),
    estimator=st.text(max_size=5),
    model=st.text(max_size=5),
    optimal=st.booleans(),
    bound_rps=st.none() | st.floats(0, 1e6),
    seconds=st.floats(0, 1e6),
)


@settings(max_examples=60, deadline=None)
@given(placement=placements)
def test_round_trip(placement: Placement) -> None:
    text = json.dumps(placement_to_json(placement, WORKLOAD), allow_nan=False)
    assert placement_from_json(json.loads(text)) == placement


def test_dollars_for_a_million_tokens() -> None:
    estimate = Estimate(2.0, 1, 1, 1.0, 1.0, 1.0, ())
    placement = Placement((Pipeline((Stage("a", 1, 1),), estimate),), {}, cost_per_hour=7.2)
    assert cost_per_million_tokens(placement, WORKLOAD) == pytest.approx(1.0)  # 7.2 M tokens/h
    assert cost_per_million_tokens(Placement((), {}, 7.2), WORKLOAD) is None


def sound() -> dict[str, Any]:
    estimate = Estimate(2.0, 1, 1, 1.0, 1.0, 1.0, ())
    placement = Placement((Pipeline((Stage("a", 1, 1),), estimate),), {}, cost_per_hour=7.2)
    return placement_to_json(placement, WORKLOAD)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(format="other"), "not a placement"),
        (lambda data: data.pop("pipelines"), "pipelines: is missing"),
        (lambda data: data.update(unused=3), "unused: 3 is not a table"),
        (
            lambda data: data["pipelines"][0]["stages"][0].update(layers=0),
            "pipelines[0].stages[0].layers: 0 is out of range",
        ),
        (lambda data: data.update(extra=1), "extra: unknown key"),
    ],
)
def test_what_is_no_placement(change: Any, says: str) -> None:
    data = sound()
    change(data)
    with pytest.raises(UserError) as caught:
        placement_from_json(data, "placement.json")
    assert says in str(caught.value)
    assert str(caught.value).startswith("placement.json: ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read it"):
        read_placement(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(UserError, match="not JSON"):
        read_placement(tmp_path / "text.json")
