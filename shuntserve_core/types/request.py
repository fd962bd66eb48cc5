"""What travels between front door and engine: token ids in, token ids out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from attrs.validators import ge, in_, optional

from shuntserve_core.types.features import Feature

FINISH_REASONS = ("stop", "length", "error")


if TYPE_CHECKING:

    def _ids(values: Iterable[int]) -> tuple[int, ...]: ...
    def _alternatives(values: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]: ...
    def _names(values: Iterable[str]) -> frozenset[str]: ...
    def _logprobs(values: Iterable[TokenLogprob]) -> tuple[TokenLogprob, ...]: ...

else:  # without a call around them: they run for every token of every answer
    _ids = _alternatives = _logprobs = tuple
    _names = frozenset


@frozen
class SamplingParams:
    """How tokens are chosen.  All counts are of output tokens, resumed ones included.

    A row of logits passes: bias, `min_tokens`, penalties, temperature, then `min_p`, `top_k` and
    `top_p` in any order.  Which engine does which of it is said in `features`: `NEEDS` names what
    each field needs, and a field that is not named there fails the tests.
    """

    max_tokens: int = field(validator=ge(1))
    min_tokens: int = field(default=0, validator=ge(0))
    """No stop token is chosen before so many tokens."""
    temperature: float = field(default=1.0, validator=ge(0))
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    seed: int = 0
    """Always set: the front door draws one where the client gave none, so that every request can
    be resumed.  Token k of the output is drawn with noise that depends on (seed, k) alone: see
    `shuntserve_core.sampling.noise`."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(factory=dict)
    stop_token_ids: tuple[int, ...] = field(default=(), converter=_ids)
    """Tokens that end the output; they are reported as generated, and make no text."""
    logprobs: int | None = None
    """Alternatives to report for each token; 0 is the chosen token alone, None is off."""
    prompt_logprobs: int | None = None
    """As `logprobs`, for each token of the prompt but the first, which nothing predicts."""
    guided: Mapping[str, Any] | None = None
    """A constraint on the text, such as `{"json_schema": {...}}`, for engines that can."""


@frozen
class EngineRequest:
    """One sequence to generate.  A resumed one carries the tokens that it already has."""

    id: str
    prompt: tuple[int, ...] = field(converter=_ids)
    sampling: SamplingParams
    output: tuple[int, ...] = field(default=(), converter=_ids)
    """Tokens generated before, to be treated as output (penalties, `min_tokens`, grammar, seed)."""
    cache_salt: str = ""
    """Keys and values are shared with requests of the same salt alone, wherever prompts are equal;
    empty is a salt like any other."""

    @property
    def features(self) -> frozenset[str]:
        """What an engine must be able to do for this request; see `EngineInfo.features`."""
        s = self.sampling
        drawn = s.temperature > 0  # else what filters leave is still the most probable token
        used = (
            (Feature.SAMPLING, drawn),
            (Feature.TOP_P, drawn and s.top_p < 1),
            (Feature.TOP_K, drawn and s.top_k > 0),
            (Feature.MIN_P, drawn and s.min_p > 0),
            (Feature.PRESENCE_PENALTY, s.presence_penalty),
            (Feature.FREQUENCY_PENALTY, s.frequency_penalty),
            (Feature.REPETITION_PENALTY, s.repetition_penalty != 1.0),
            (Feature.LOGIT_BIAS, s.logit_bias),
            (Feature.MIN_TOKENS, s.min_tokens),
            (Feature.LOGPROBS, s.logprobs is not None),
            (Feature.PROMPT_LOGPROBS, s.prompt_logprobs is not None),
            (Feature.GUIDED, s.guided is not None),
            (Feature.RESUME, self.output),
        )
        return frozenset(feature for feature, needed in used if needed)


@frozen
class TokenLogprob:
    """The probability of one token, and of its best alternatives."""

    logprob: float
    top: tuple[tuple[int, float], ...] = field(default=(), converter=_alternatives)
    """(token id, logprob), most probable first."""
    rank: int = 0
    """The token's place among all, 1 the most probable; told of prompts only, else 0."""


@frozen
class StepOutput:
    """What one engine step added to one request."""

    id: str
    tokens: tuple[int, ...] = field(default=(), converter=_ids)
    logprobs: tuple[TokenLogprob, ...] = field(default=(), converter=_logprobs)
    """One for each token, or empty if not asked for."""
    finish: str | None = field(default=None, validator=optional(in_(FINISH_REASONS)))
    error: str = ""
    """Why, if `finish` is `error`."""
    bad_request: bool = False
    """With `error`: the request is wrong and would fail on any engine, so it is not tried again."""
    prompt_logprobs: tuple[TokenLogprob, ...] = field(default=(), converter=_logprobs)
    """Of the next tokens of the prompt, from its second on.  All of a prompt come, in one step or
    in several, not later than the first token of the output."""


@frozen
class EngineInfo:
    """What an engine says of itself when a link opens."""

    engine_id: str
    """Unique to one start of one engine: words from an older one are worthless."""
    engine: str
    """Name of the engine plugin."""
    model: str
    max_batch: int
    """Sequences that it runs at once."""
    max_length: int
    """Longest prompt and output together, in tokens."""
    features: frozenset[str] = field(default=frozenset(), converter=_names)
    """Names of `Feature`s; a request that needs another is refused by the engine's link."""


@frozen
class EngineLoad:
    """How busy an engine is, as of its last step."""

    running: int = 0
    waiting: int = 0
    kv_used: float = 0.0
    """Share of KV blocks in use, 0 to 1."""
    tokens: int = 0
    """Tokens generated since the engine started, as are all counts below."""
    preemptions: int = 0
    """Sequences that gave their KV memory back, to be computed anew later."""
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache; 0 without one."""
    prefix_hits: int = 0
    """Of those, the ones found."""
