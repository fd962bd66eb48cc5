"""A request body as sampling parameters."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from attrs import evolve, field, frozen

from shuntserve_core.text import TextTokenizer
from shuntserve_core.types.features import EVERY_FEATURE, NEEDS, Feature
from shuntserve_core.types.request import EngineRequest, SamplingParams
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.wire import Sampling

SEEDS = 2**63
_WRITTEN: Mapping[str, tuple[str, ...]] = {
    Feature.SAMPLING: ("temperature",),
    Feature.LOGPROBS: ("logprobs",),
    Feature.PROMPT_LOGPROBS: ("prompt_logprobs", "echo"),
    Feature.GUIDED: ("response_format", "structured_outputs", "tools"),
}
"""What a client may have written to ask for a feature, where it is not the feature's name."""


@frozen
class Served:
    """What a request can be checked against: the model and what the engines can do."""

    tokenizer: TextTokenizer
    features: frozenset[str]
    max_length: int
    token_cap: int = 0
    """Most tokens that this client may ask for in each answer; 0 is no cap."""
    defaults: Mapping[str, Any] = field(factory=dict)


def sampling_params(
    body: Sampling,
    served: Served,
    *,
    prompt_length: int,
    max_tokens: int | None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    guided: Mapping[str, Any] | None = None,
) -> SamplingParams:
    """Parameters of the first choice; the others differ in their seed alone, see `choice_seed`.

    Raises `ApiError` 400 for what does not fit the model, or what no engine here can do.
    """
    if body.prompt_logprobs is not None and body.stream:
        raise ApiError(
            400,
            "prompt_logprobs are not available in a stream",
            param="prompt_logprobs",
            code="unsupported_parameter",
        )
    count = _max_tokens(body, served, prompt_length, max_tokens)
    if body.min_tokens is not None and body.min_tokens > count:
        raise ApiError(
            400, f"min_tokens is greater than the {count} tokens allowed", param="min_tokens"
        )
    default = _defaults(served)
    top_k = default.get("top_k", 0) if body.top_k is None else body.top_k
    params = SamplingParams(
        max_tokens=count,
        min_tokens=body.min_tokens or 0,
        temperature=_temperature(body, served),
        top_p=_pick(body.top_p, default.get("top_p"), 1.0),
        top_k=max(int(top_k), 0),
        min_p=_pick(body.min_p, default.get("min_p"), 0.0),
        seed=random.getrandbits(63) if body.seed is None else body.seed % SEEDS,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=_pick(body.repetition_penalty, default.get("repetition_penalty"), 1.0),
        logit_bias=_logit_bias(body.logit_bias, served.tokenizer.vocab_size),
        stop_token_ids=_stop_tokens(body, served.tokenizer),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        guided=guided,
    )
    if not served.features >= EVERY_FEATURE:
        _check_features(body, params, served.features)
    return params


def choice_seed(params: SamplingParams, index: int) -> SamplingParams:
    """The parameters of choice `index`: the seed counts up, so that answers differ."""
    return evolve(params, seed=(params.seed + index) % SEEDS) if index else params


def written_for(body: Sampling, feature: str) -> str:
    """The parameter that a client has written to ask for a feature."""
    names = _WRITTEN.get(feature, (feature,))
    return next((name for name in names if _has(body, name)), names[0])


def _max_tokens(body: Sampling, served: Served, prompt_length: int, asked: int | None) -> int:
    field = "max_completion_tokens" if _has(body, "max_completion_tokens") else "max_tokens"
    room = served.max_length - prompt_length
    if room < 1 or (asked is not None and asked > room):
        wanted = f" and {asked} tokens of output" if asked is not None else ""
        raise ApiError(
            400,
            f"This model's maximum context length is {served.max_length} tokens; the prompt has "
            f"{prompt_length} tokens{wanted}. Shorten the prompt or ask for fewer tokens.",
            param=field if _has(body, field) and room > 0 else _prompt_field(body),
            code="context_length_exceeded",
        )
    if asked is None:
        return min(room, served.token_cap) if served.token_cap else room
    if served.token_cap and asked > served.token_cap:
        raise ApiError(
            400,
            f"This API key may ask for at most {served.token_cap} tokens of output "
            "in each of so many answers.",
            param=field,
        )
    return asked


def _has(body: Sampling, name: str) -> bool:
    return getattr(body, name, None) is not None


def _prompt_field(body: Sampling) -> str:
    return "messages" if hasattr(body, "messages") else "prompt"


def _defaults(served: Served) -> Mapping[str, Any]:
    """The model's defaults, without those that no engine here can follow: nobody asked for them."""
    if served.features >= EVERY_FEATURE:
        return served.defaults
    return {
        name: value for name, value in served.defaults.items() if NEEDS.get(name) in served.features
    }


def _temperature(body: Sampling, served: Served) -> float:
    if body.temperature is not None:
        return body.temperature
    if Feature.SAMPLING not in served.features:  # greedy is all that there is
        return 0.0
    return float(served.defaults.get("temperature", 1.0))


def _pick(asked: float | None, default: Any, otherwise: float) -> float:
    if asked is not None:
        return asked
    return otherwise if default is None else float(default)


def _logit_bias(bias: Mapping[str, float] | None, vocab_size: int) -> dict[int, float]:
    if not bias:
        return {}
    if len(bias) > 1024:
        raise ApiError(400, "logit_bias has more than 1024 entries", param="logit_bias")
    checked = {}
    for text, value in bias.items():
        token = int(text) if text.isascii() and text.isdigit() and len(text) < 11 else -1
        if not 0 <= token < vocab_size:
            raise ApiError(
                400,
                f"logit_bias has the key {text[:20]!r}; "
                f"keys are token ids from 0 to {vocab_size - 1}",
                param="logit_bias",
            )
        checked[token] = value
    return checked


def _stop_tokens(body: Sampling, tokenizer: TextTokenizer) -> tuple[int, ...]:
    own = () if body.ignore_eos else tokenizer.stop_ids
    if not body.stop_token_ids:
        return own
    for token in body.stop_token_ids:
        if token >= tokenizer.vocab_size:
            raise ApiError(
                400,
                f"stop_token_ids has {token}; ids go from 0 to {tokenizer.vocab_size - 1}",
                param="stop_token_ids",
            )
    return tuple(dict.fromkeys((*own, *body.stop_token_ids)))


def _check_features(body: Sampling, params: SamplingParams, features: frozenset[str]) -> None:
    missing = sorted(EngineRequest("", (), params).features - features)
    if missing:
        parameter = written_for(body, missing[0])
        raise ApiError(
            400,
            f"The engine that serves this model has no {missing[0]}: leave out {parameter}"
            + (" or set it to 0." if missing[0] == Feature.SAMPLING else "."),
            param=parameter,
            code="unsupported_parameter",
        )
