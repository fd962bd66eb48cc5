"""Every field of a request's sampling has its feature, and asks for nothing where it is neutral."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from shuntserve_core.registry import Registry
from shuntserve_core.testing.sampling import EFFECTS, EXAMPLES, FIELDS
from shuntserve_core.types.features import EVERY_FEATURE, NEEDS, Feature
from shuntserve_core.types.request import EngineRequest, SamplingParams


def features(output: tuple[int, ...] = (), **sampling: Any) -> frozenset[str]:
    params = SamplingParams(**{"max_tokens": 4, "temperature": 0.0, **sampling})
    return EngineRequest("r", (1, 2), params, output).features


def test_every_field_says_what_it_needs_and_what_it_does() -> None:
    assert list(NEEDS)
    assert set(NEEDS) == {field.name for field in attrs.fields(SamplingParams)}
    assert set(FIELDS) == set(EFFECTS)
    assert set(EXAMPLES) == {name for name, feature in NEEDS.items() if feature is not None}
    assert {*NEEDS.values(), Feature.RESUME} - {None} == set(EVERY_FEATURE)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_field_that_is_not_neutral_needs_its_feature(name: str) -> None:
    needed = NEEDS[name]
    assert needed in features(**EXAMPLES[name])
    assert features(**EXAMPLES[name]) - {needed} <= {Feature.SAMPLING}


def test_neutral_values_need_nothing() -> None:
    assert features(seed=9, stop_token_ids=(3,)) == frozenset()
    assert features(top_p=0.5, top_k=3, min_p=0.1) == frozenset(), "greedy, filters leave the best"
    assert features(output=(5,)) == {Feature.RESUME}


@pytest.mark.parametrize("name", ["embedded", "simulated", "vllm"])
def test_engines_declare_features_that_there_are(name: str) -> None:
    declared = Registry().get("engine", name)().features
    assert declared
    assert declared <= EVERY_FEATURE
