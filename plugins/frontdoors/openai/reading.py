"""From the bytes of a request body to what the event loop needs of it.

Everything here grows with the request (JSON, templates, tokens, text of tokens), so it is one plain
function of bytes, which runs on the event loop for small bodies and in a process of its own for
others; see `desk`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from attrs import frozen

from shuntserve_core.text import TextTokenizer
from shuntserve_plugins.frontdoors.openai.answers import DetokenizeResponse, TokenizeResponse
from shuntserve_plugins.frontdoors.openai.decoding import decode
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.prompts import (
    Bounds,
    chat_prompt,
    check_model,
    completion_prompts,
    encode,
)
from shuntserve_plugins.frontdoors.openai.settings import check_stream_options, template_variables
from shuntserve_plugins.frontdoors.openai.tools import answer_shape
from shuntserve_plugins.frontdoors.openai.wire import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Message,
    TokenizeRequest,
)

_json = msgspec.json.encode
BODIES: Mapping[str, type[Any]] = {
    "chat": ChatRequest,
    "completion": CompletionRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
}
"""Types of bodies, by kind of request."""
_DECODERS = {kind: msgspec.json.Decoder(body) for kind, body in BODIES.items()}


class Plain(msgspec.Struct):
    """What chat templates are shown of a body, as it was sent: with its keys in their order."""

    messages: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None


_plain = msgspec.json.Decoder(Plain)


@frozen
class Reading:
    """What was made of a body."""

    body: Any
    """The request, without its texts where another process has read it."""
    prompts: Sequence[Sequence[int]] = ()
    """Token ids."""
    echoes: Sequence[bytes] = ()
    """Texts of the prompts, as JSON, where they are to be echoed."""
    answer: bytes = b""
    """The response's body, where it needs nothing else."""


def read(kind: str, tokenizer: TextTokenizer, bounds: Bounds, raw: bytes) -> Reading:
    """Read a body of a `kind` in `READERS`.

    Raises `ApiError` for whatever is wrong with it, and `OutOfBudget` as `Bounds.last` says.
    """
    body = decode(kind, _DECODERS[kind], raw)
    check_model(body.model, bounds.model)
    return READERS[kind](tokenizer, bounds, body, raw)


def _chat(tokenizer: TextTokenizer, bounds: Bounds, body: ChatRequest, raw: bytes) -> Reading:
    bounds.check_choices(1, body.choices)
    check_stream_options(body)
    with_tools = bool(answer_shape(body).tools)
    return Reading(body, [_prompt(tokenizer, bounds, body, raw, with_tools=with_tools)])


def _prompt(
    tokenizer: TextTokenizer,
    bounds: Bounds,
    body: ChatRequest | TokenizeRequest,
    raw: bytes,
    *,
    with_tools: bool,
) -> list[int]:
    """Token ids of a chat."""
    plain = _plain.decode(raw)
    conversations = tokenizer.conversations(with_tools=with_tools)
    template = conversations.template if conversations else None
    return chat_prompt(
        tokenizer,
        plain.messages,
        bounds,
        tools=plain.tools if with_tools else None,
        documents=plain.documents,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        extra=template_variables(template, body),
    )


def _completion(
    tokenizer: TextTokenizer, bounds: Bounds, body: CompletionRequest, _raw: bytes
) -> Reading:
    check_stream_options(body)
    prompts = completion_prompts(
        tokenizer,
        body.prompt,
        bounds,
        answers=body.choices,
        special=body.add_special_tokens is not False,
    )
    if not body.echo:
        return Reading(body, prompts)
    one = isinstance(body.prompt, str) or len(prompts) != len(body.prompt)
    written = [body.prompt] if one else body.prompt
    texts = [
        text if isinstance(text, str) else tokenizer.decode(ids)
        for text, ids in zip(written, prompts, strict=False)
    ]
    return Reading(body, prompts, [_json(text) for text in texts])


def _tokenize(
    tokenizer: TextTokenizer, bounds: Bounds, body: TokenizeRequest, raw: bytes
) -> Reading:
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "Give one of prompt and messages.", param="prompt")
    if body.messages is not None:
        tokens = _prompt(tokenizer, bounds, body, raw, with_tools=bool(body.tools))
    else:
        special = body.add_special_tokens is not False
        tokens = encode(tokenizer, body.prompt or "", bounds, "prompt", special=special)
    strings = [tokenizer.token_text(t) for t in tokens] if body.return_token_strs else None
    answer = TokenizeResponse(len(tokens), bounds.max_length, tokens, strings)
    return Reading(body, answer=_json(answer))


def _detokenize(
    tokenizer: TextTokenizer, bounds: Bounds, body: DetokenizeRequest, _raw: bytes
) -> Reading:
    if len(body.tokens) > bounds.max_length:
        raise bounds.too_long(f"these are {len(body.tokens)} tokens", "tokens")
    if body.tokens and max(body.tokens) >= tokenizer.vocab_size:
        last = tokenizer.vocab_size - 1
        raise ApiError(400, f"Token ids go from 0 to {last}.", param="tokens")
    text = tokenizer.decode(body.tokens, skip_special_tokens=False)
    return Reading(body, answer=_json(DetokenizeResponse(text)))


READERS: Mapping[str, Callable[[TextTokenizer, Bounds, Any, bytes], Reading]] = {
    "chat": _chat,
    "completion": _completion,
    "tokenize": _tokenize,
    "detokenize": _detokenize,
}
"""By kind of request."""

# Between processes

MAX_REST = 256 << 10
"""Bytes of a request beside its prompts: schemas, tools, stop strings..."""
_REQUESTS: Mapping[str, msgspec.msgpack.Decoder[Any]] = {
    "chat": msgspec.msgpack.Decoder(ChatRequest),
    "completion": msgspec.msgpack.Decoder(CompletionRequest),
}
_NO_MESSAGES = [Message(role="none")]


def pack(kind: str, reading: Reading) -> bytes:
    """A reading for another process; raises `ApiError` 400 if it is too large beside its texts."""
    rest = b""
    if not reading.answer:
        body = reading.body
        if isinstance(body, ChatRequest):
            body.messages = _NO_MESSAGES
            body.chat_template_kwargs = body.documents = None
        elif isinstance(body, CompletionRequest):
            body.prompt = ""
        rest = msgspec.msgpack.encode(body)
        if len(rest) > MAX_REST:
            raise ApiError(
                400,
                f"Beside its prompts or messages a request may have {MAX_REST >> 10} KiB.",
                code="request_too_large",
            )
    ids = [array("I", prompt).tobytes() for prompt in reading.prompts]
    return msgspec.msgpack.encode((rest, ids, list(reading.echoes), reading.answer))


_packed = msgspec.msgpack.Decoder(tuple[bytes, list[bytes], list[bytes], bytes])


def unpack(kind: str, data: bytes) -> Reading:
    """The reading that `pack` made these bytes of; its prompts are arrays."""
    rest, ids, echoes, answer = _packed.decode(data)
    body = _REQUESTS[kind].decode(rest) if rest else None
    return Reading(body, [array("I", prompt) for prompt in ids], echoes, answer)
