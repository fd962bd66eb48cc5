"""Requests of every kind, and what an engine says of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from attrs import evolve

from shuntserve_core.types.request import EngineRequest, SamplingParams, StepOutput, TokenLogprob

Said = list[tuple[int, TokenLogprob | None]]


def request(name: str, *, vocab: int = 1000, length: int = 0, **sampling: Any) -> EngineRequest:
    """A prompt that the name alone decides; greedy, 12 tokens, with logprobs."""
    rng = random.Random(name)
    count = length or rng.randint(1, 40)
    prompt = tuple(rng.randrange(vocab) for _ in range(count))
    values = {"max_tokens": 12, "temperature": 0.0, "logprobs": 3, **sampling}
    return EngineRequest(name, prompt, SamplingParams(**values))


def variety(count: int) -> list[EngineRequest]:
    """Requests of many lengths and ways of sampling."""
    ways: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "seed": 1},
        {"temperature": 1.2, "top_p": 0.9, "top_k": 50, "seed": 2},
        {"temperature": 0.7, "min_p": 0.05, "presence_penalty": 0.5, "seed": 3},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
        {"temperature": 0.8, "min_tokens": 8, "stop_token_ids": tuple(range(0, 1000, 3))},
        {"logit_bias": {5: 4.0, 6: -100.0}},
    ]
    return [request(f"r{i}", **ways[i % len(ways)]) for i in range(count)]


def said(steps: Sequence[StepOutput]) -> Said:
    """Tokens and logprobs, to the last bit."""
    tokens: Said = []
    for step in steps:
        assert step.finish != "error"
        logprobs = step.logprobs or (None,) * len(step.tokens)
        tokens += zip(step.tokens, logprobs, strict=True)
    return tokens


def resumed(original: EngineRequest, tokens: Sequence[int]) -> EngineRequest:
    """The request as another engine would get it after these tokens."""
    return evolve(original, output=tuple(tokens))
