"""What becomes of a body's sampling parameters, engine by engine."""

from __future__ import annotations

from typing import Any

import pytest

from shuntserve_core.text import TextTokenizer
from shuntserve_core.types.features import EVERY_FEATURE
from shuntserve_core.types.request import EngineRequest, SamplingParams
from shuntserve_plugins.frontdoors.openai.sampling import Served, sampling_params
from shuntserve_plugins.frontdoors.openai.wire import ChatRequest, Message

DEFAULTS = {
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
}


def params(tokenizer: TextTokenizer, *without: str, **body: Any) -> SamplingParams:
    served = Served(tokenizer, EVERY_FEATURE - {*without}, 100, defaults=DEFAULTS)
    request = ChatRequest(model="m", messages=[Message("user", "x")], **body)
    return sampling_params(request, served, prompt_length=5, max_tokens=5)


def test_the_models_defaults_are_taken(tokenizer: TextTokenizer) -> None:
    made = params(tokenizer)
    assert {name: getattr(made, name) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p", "repetition_penalty"])
def test_a_default_that_no_engine_can_follow_refuses_nobody(
    tokenizer: TextTokenizer, name: str
) -> None:
    made = params(tokenizer, name)
    neutral = SamplingParams(max_tokens=5)
    assert getattr(made, name) == getattr(neutral, name)
    assert name not in EngineRequest("r", (1,), made).features
    assert made.temperature == 0.6
