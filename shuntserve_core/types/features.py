"""What an engine may or may not be able to do, and which sampling parameter needs what.

This is the one list.  Engines declare what they implement of it, the front door refuses what none
of them does, requests go to engines that can, and an engine's link refuses whatever comes all the
same: nothing is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Feature(StrEnum):
    """By its name in `Engine.features` and `EngineInfo.features`."""

    SAMPLING = "sampling"
    """Tokens are drawn, by the seed; without it there is the most probable token alone."""
    TOP_P = "top_p"
    TOP_K = "top_k"
    MIN_P = "min_p"
    PRESENCE_PENALTY = "presence_penalty"
    FREQUENCY_PENALTY = "frequency_penalty"
    REPETITION_PENALTY = "repetition_penalty"
    LOGIT_BIAS = "logit_bias"
    MIN_TOKENS = "min_tokens"
    LOGPROBS = "logprobs"
    PROMPT_LOGPROBS = "prompt_logprobs"
    GUIDED = "guided"
    """The text can be held to a JSON schema, a regular expression, a grammar..."""
    RESUME = "resume"
    """A request may come with tokens that another engine has generated."""


EVERY_FEATURE: frozenset[str] = frozenset(Feature)

NEEDS: Mapping[str, Feature | None] = {
    "max_tokens": None,
    "stop_token_ids": None,
    "min_tokens": Feature.MIN_TOKENS,
    "temperature": Feature.SAMPLING,
    "seed": Feature.SAMPLING,
    "top_p": Feature.TOP_P,
    "top_k": Feature.TOP_K,
    "min_p": Feature.MIN_P,
    "presence_penalty": Feature.PRESENCE_PENALTY,
    "frequency_penalty": Feature.FREQUENCY_PENALTY,
    "repetition_penalty": Feature.REPETITION_PENALTY,
    "logit_bias": Feature.LOGIT_BIAS,
    "logprobs": Feature.LOGPROBS,
    "prompt_logprobs": Feature.PROMPT_LOGPROBS,
    "guided": Feature.GUIDED,
}
"""Every field of `SamplingParams` with the feature that it needs where it is not neutral; None is
what every engine does."""
