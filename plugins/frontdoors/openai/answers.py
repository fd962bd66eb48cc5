"""Response bodies, and the data of the events of streams, as types."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from shuntserve_plugins.frontdoors.openai.wire import ToolCall


class TokenizeResponse(Struct):
    """The tokens of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeResponse(Struct):
    """The text of some tokens."""

    prompt: str


class Usage(Struct):
    """Token counts.  The end token that a model generates counts as generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(Struct):
    """A token that could have been chosen."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(Struct):
    """A chosen token, and the most probable ones at its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """Logprobs of an answer's tokens."""

    content: list[TokenLogprobs]
    refusal: None = None


class ResponseMessage(Struct, omit_defaults=True):
    """The answer."""

    content: str | None
    refusal: None
    role: Literal["assistant"] = msgspec.field(default_factory=lambda: "assistant")
    tool_calls: list[ToolCall] = []


FinishReason = Annotated[str, Meta(pattern="^(stop|length|tool_calls)$")]


class ChatChoice(Struct):
    """One answer of a chat."""

    index: int
    message: ResponseMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class PromptLogprob(Struct):
    """A token of the vocabulary at a place of the prompt."""

    logprob: float
    rank: int
    """1 for the most probable."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By token id; null for the first token of the prompt."""


class ChatResponse(Struct):
    """Body of an answer to `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """Where asked for."""


class ChunkFunction(Struct):
    """A piece of a function call."""

    arguments: str
    name: str | None = None


class ChunkToolCall(Struct):
    """A piece of a tool call; the first one has its id and the function's name."""

    index: int
    function: ChunkFunction
    id: str | None = None
    type: Literal["function"] | None = None


class ChunkMessage(Struct, forbid_unknown_fields=True):
    """What an event adds to the answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ChunkToolCall] | None = None


class ChatChunkChoice(Struct, forbid_unknown_fields=True):
    """An event's part of one answer."""

    index: int
    delta: ChunkMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Struct, forbid_unknown_fields=True):
    """The data of one event of a streamed chat, but for the last, which is `[DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(Struct):
    """Logprobs in the form of the older endpoint."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]
    """Null, as its logprob, for the first token of a prompt, which nothing predicts."""


class CompletionChoice(Struct):
    """One answer to one prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    """Where asked for."""


class CompletionResponse(Struct):
    """Body of an answer to `POST /v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(Struct, forbid_unknown_fields=True):
    """An event's part of one answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionChunk(Struct, forbid_unknown_fields=True):
    """The data of one event of a streamed completion, but for the last, which is `[DONE]`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | None = None


class Model(Struct):
    """The model that is served."""

    id: str
    created: int
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: str = "shuntserve"


class ModelList(Struct):
    """Body of `GET /v1/models`."""

    data: list[Model]
    object: Literal["list"] = "list"


class Health(Struct):
    """Whether the server is well."""

    status: Literal["ok", "starting", "draining"]


class Version(Struct):
    """Body of `GET /version`."""

    version: str


class Load(Struct):
    """Body of `GET /load`."""

    server_load: int
    """Generations under way."""
