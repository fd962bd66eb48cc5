"""A request body as prompt token ids."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from shuntserve_core.text import TemplateError, TextTokenizer
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.wire import Message, Tool

LONG = 4096
"""Characters from which on a text is encoded in a thread, so that streams flow meanwhile."""


async def encode(tokenizer: TextTokenizer, text: str, *, special: bool = True) -> list[int]:
    """Token ids of a text."""
    if len(text) < LONG:
        return tokenizer.encode(text, add_special_tokens=special)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=special)


async def chat_prompt(
    tokenizer: TextTokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool | None = None,
    extra: dict[str, Any] | None = None,
) -> list[int]:
    """Render the chat template and encode what it gives.

    Raises `ApiError` 400 where the model has no template, or it refuses the messages.
    """
    if tokenizer.template is None:
        raise ApiError(
            400,
            "This model has no chat template; use /v1/completions.",
            param="messages",
            code="no_chat_template",
        )
    continues = bool(continue_final_message)
    if continues and add_generation_prompt:
        raise ApiError(
            400,
            "add_generation_prompt and continue_final_message exclude each other",
            param="continue_final_message",
        )
    try:
        text = tokenizer.template.render(
            [as_template_message(message) for message in messages],
            tools=[msgspec.to_builtins(tool) for tool in tools] if tools else None,
            add_generation_prompt=not continues and add_generation_prompt is not False,
            continue_final_message=continues,
            extra=extra,
        )
    except (TemplateError, RecursionError) as error:
        raise ApiError(400, str(error), param="messages", code="template_error") from error
    # Templates write the begin-of-text token themselves.
    return await encode(tokenizer, text, special=False)


def as_template_message(message: Message) -> dict[str, Any]:
    """The message as templates expect it: text parts joined, call arguments as objects."""
    plain: dict[str, Any] = msgspec.to_builtins(message)
    content = message.content
    if isinstance(content, list):
        plain["content"] = "\n".join(part.text for part in content)
    elif content is None:
        plain["content"] = ""
    for name in ("annotations", "audio", "function_call"):
        plain.pop(name, None)
    for name, other in (("reasoning", "reasoning_content"), ("reasoning_content", "reasoning")):
        if name in plain:
            plain.setdefault(other, plain[name])
    for call in plain.get("tool_calls", ()):
        call["function"]["arguments"] = _object(call["function"]["arguments"])
    return plain


def _object(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


async def completion_prompts(
    tokenizer: TextTokenizer, prompt: str | list[Any], *, special: bool = True
) -> list[list[int]]:
    """Every prompt of a completions request, from any of its four forms.

    Raises `ApiError` 400 for an empty prompt, a mixed list, or ids outside the vocabulary.
    """
    if isinstance(prompt, str):
        prompts = [await encode(tokenizer, prompt, special=special)]
    elif prompt and all(isinstance(item, int) for item in prompt):
        prompts = [prompt]
    elif all(isinstance(item, str) for item in prompt):
        prompts = [await encode(tokenizer, text, special=special) for text in prompt]
    elif all(isinstance(item, list) for item in prompt):
        prompts = prompt
    else:
        raise ApiError(400, "prompt mixes texts and token ids", param="prompt")
    if not prompts:
        raise ApiError(400, "prompt is an empty list", param="prompt")
    return [_checked(tokenizer, ids) for ids in prompts]


def _checked(tokenizer: TextTokenizer, ids: list[int]) -> list[int]:
    if not ids:
        if tokenizer.bos_id is None:
            raise ApiError(400, "prompt is empty", param="prompt")
        return [tokenizer.bos_id]
    if max(ids) >= tokenizer.vocab_size:
        raise ApiError(
            400,
            f"prompt has the token id {max(ids)}; ids go from 0 to {tokenizer.vocab_size - 1}",
            param="prompt",
        )
    return ids
