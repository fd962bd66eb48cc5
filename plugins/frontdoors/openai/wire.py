"""Request bodies as types; what is answered is in `answers`.

Validation and the OpenAPI document are made from these; `parameters` says of each field what
becomes of it.  Every optional field may be null, which means the default, as at OpenAI.  A name
that is not here is an error: a misspelt parameter that silently does nothing costs its user a day.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

MAX_LOGPROBS = 20
MAX_STOPS = 4
MAX_CHOICES = 1024
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]
Constraint = Annotated[str, Meta(min_length=1, max_length=1 << 16)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Meta(ge=1, lt=2**31)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class StreamOptions(Struct, forbid_unknown_fields=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """With `include_usage`: every event has the token counts of its choice so far."""
    include_obfuscation: bool | None = None
    """False alone: events are not padded."""


class JsonSchema(Struct, forbid_unknown_fields=True):
    """A JSON schema that the answer must fit."""

    name: str | None = ""
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True):
    """What shape the answer must have."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    format: dict[str, Any] | None = None
    """Of a structural tag: what is constrained where, as the engine's library reads it."""


class StructuredOutputs(Struct, kw_only=True, forbid_unknown_fields=True):
    """A constraint on the answer under vLLM's names; exactly one of them."""

    json: dict[str, Any] | str | None = None
    """A JSON schema, or its text."""
    regex: Constraint | None = None
    choice: Annotated[list[Constraint], Meta(min_length=1, max_length=MAX_CHOICES)] | None = None
    """The answer is one of these."""
    grammar: Constraint | None = None
    """In EBNF."""
    json_object: bool | None = None
    structural_tag: Constraint | None = None
    """Its JSON, as text."""


class Sampling(Struct, kw_only=True, forbid_unknown_fields=True):
    """What chat and completions have in common."""

    model: Annotated[str, Meta(max_length=1024)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None

    # Beyond OpenAI, under the names that vLLM uses.
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=256)] | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    structured_outputs: StructuredOutputs | None = None
    skip_special_tokens: bool | None = None

    @property
    def choices(self) -> int:
        """Answers wanted for each prompt."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings, however they were written."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_usage_throughout(self) -> bool:
        """Whether every event of a stream has the token counts so far."""
        continuous = self.stream_options and self.stream_options.continuous_usage_stats
        return self.wants_usage and bool(continuous)


class TextPart(
    Struct, tag_field="type", tag="text", omit_defaults=True, forbid_unknown_fields=True
):
    """A piece of a message."""

    text: str
    prompt_cache_breakpoint: Any = None
    """Taken and without effect, as all that is about caches."""


class RefusalPart(Struct, tag_field="type", tag="refusal", forbid_unknown_fields=True):
    """What a model said instead of an answer; shown as text."""

    refusal: str


class ThinkingPart(Struct, tag_field="type", tag="thinking", forbid_unknown_fields=True):
    """What a model thought before it answered."""

    thinking: str


class FunctionCall(Struct, forbid_unknown_fields=True):
    """A function that the model called."""

    name: str
    arguments: str


class ToolCall(Struct, forbid_unknown_fields=True):
    """A call in an answer."""

    function: FunctionCall
    id: str = ""
    type: Literal["function"] = "function"
    index: int | UnsetType | None = UNSET
    """Of calls that are put together from a stream."""


class PastFunction(Struct, forbid_unknown_fields=True):
    """A function that the model called, as clients send it back."""

    name: str
    arguments: str | dict[str, Any] | None = None
    """Text as OpenAI has it, or the object that it stands for."""


class PastCall(Struct, forbid_unknown_fields=True):
    """A call in the history of a chat."""

    function: PastFunction
    id: str | None = None
    type: Literal["function"] | None = None
    index: int | None = None
    """Of calls that were put together from a stream."""


class Message(Struct, omit_defaults=True, forbid_unknown_fields=True):
    """One message of a chat; its chat template is shown it as it was sent, see `reading.Plain`."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[TextPart | RefusalPart | ThinkingPart] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """The same under another name, as is `thinking`."""
    thinking: str | None = None
    refusal: str | None = None
    tool_calls: list[PastCall] | None = None
    tool_call_id: str | None = None
    annotations: list[Any] | None = None
    """Servers answer with it, so histories have it; templates are not shown it."""
    audio: None = None
    """Of the messages of some servers, always null; as is `function_call`."""
    function_call: None = None


class Function(Struct, omit_defaults=True, forbid_unknown_fields=True):
    """What the model may call; `parameters` is a JSON schema."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, forbid_unknown_fields=True):
    """A tool; there is no other kind than functions."""

    function: Function
    type: Literal["function"] | None = "function"

    def __post_init__(self) -> None:
        """Null is the same as leaving a field out."""
        self.type = self.type or "function"


class FunctionName(Struct, forbid_unknown_fields=True):
    """A function, named."""

    name: str


class NamedTool(Struct, forbid_unknown_fields=True):
    """The one function that must be called."""

    function: FunctionName
    type: Literal["function"] | None = "function"


class ChatRequest(Sampling, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    """For chat templates that show documents."""
    reasoning_effort: Effort | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    # What follows is taken and has no effect, or is refused unless it asks for nothing.
    modalities: Annotated[list[Literal["text"]], Meta(min_length=1)] | None = None
    audio: None = None
    prediction: dict[str, Any] | None = None
    web_search_options: None = None
    moderation: None = None
    functions: Annotated[list[Any], Meta(max_length=0)] | None = None
    function_call: Literal["none", "auto"] | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None


class CompletionRequest(Sampling, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/completions`."""

    prompt: str | list[str | TokenId | list[TokenId]]
    """A text, token ids, or a list of either."""
    max_tokens: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    """0 asks about the prompt alone."""
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    suffix: Annotated[str, Meta(max_length=0)] | None = None
    add_special_tokens: bool | None = None


class TokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /tokenize`: a `prompt`, or the `messages` of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /detokenize`."""

    tokens: list[TokenId]
    model: str | None = None
