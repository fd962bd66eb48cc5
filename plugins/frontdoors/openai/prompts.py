"""A request body as prompt token ids, within bounds that are checked before anything is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from attrs import frozen

from shuntserve_core.text import Budget, TemplateError, TextTokenizer, TooLong
from shuntserve_core.text.template import OutOfBudget
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.wire import Message, Tool


@frozen
class Bounds:
    """What a request is held to before its texts are read."""

    model: str
    """The only one that there is."""
    max_length: int
    """Tokens of prompt and output together."""
    choices: int
    """Answers in one request."""
    budget: Budget
    """For the chat template."""
    last: bool = True
    """Whether a template that needs more is refused; else `OutOfBudget` is raised."""

    def check_choices(self, prompts: int, answers: int) -> None:
        """Raise `ApiError` 400 for more answers than a request may have."""
        if prompts * answers > self.choices:
            param = "n" if answers > 1 else "prompt"
            raise ApiError(400, f"More than {self.choices} answers in one request.", param=param)

    def too_long(self, what: str, param: str) -> ApiError:
        """The error for a prompt that cannot fit."""
        return ApiError(
            400,
            f"This model's maximum context length is {self.max_length} tokens; {what}. "
            "Shorten the prompt.",
            param=param,
            code="context_length_exceeded",
        )


def check_model(name: str | None, served: str) -> None:
    """Raise `ApiError` 404 if another model is asked for than is served."""
    if name is not None and name != served:
        raise ApiError(
            404,
            f"The model {name[:100]!r} does not exist; this server has {served!r}.",
            param="model",
            code="model_not_found",
        )


def encode(
    tokenizer: TextTokenizer, text: str, bounds: Bounds, param: str, *, special: bool = True
) -> list[int]:
    """Token ids of a text.  Raises `ApiError` 400 for one that is too long for the model."""
    try:
        return tokenizer.encode_within(text, bounds.max_length, add_special_tokens=special)
    except TooLong as error:
        raise bounds.too_long(str(error), param) from None


def chat_prompt(
    tokenizer: TextTokenizer,
    messages: Sequence[Message],
    bounds: Bounds,
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
    parts = sum(len(m.content) for m in messages if isinstance(m.content, list))
    if len(messages) + parts > bounds.max_length:  # each makes a token at least
        raise bounds.too_long(f"there are {len(messages)} messages of {parts} parts", "messages")
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
            budget=bounds.budget,
        )
    except (TemplateError, RecursionError) as error:
        if isinstance(error, OutOfBudget) and not bounds.last:
            raise
        raise ApiError(400, str(error), param="messages", code="template_error") from error
    # Templates write the begin-of-text token themselves.
    return encode(tokenizer, text, bounds, "messages", special=False)


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
    except (ValueError, RecursionError):
        return arguments


def completion_prompts(
    tokenizer: TextTokenizer,
    prompt: str | list[Any],
    bounds: Bounds,
    *,
    answers: int = 1,
    special: bool = True,
) -> list[list[int]]:
    """Every prompt of a completions request, from any of its four forms.

    Raises `ApiError` 400 for an empty prompt, a mixed list, ids outside the vocabulary, too many
    prompts, or one that is too long.
    """
    one = isinstance(prompt, str) or (bool(prompt) and isinstance(prompt[0], int))
    bounds.check_choices(1 if one else len(prompt), answers)
    if isinstance(prompt, str):
        prompts = [encode(tokenizer, prompt, bounds, "prompt", special=special)]
    elif one and len(prompt) > bounds.max_length:
        raise bounds.too_long(f"the prompt has {len(prompt)} tokens", "prompt")
    elif one and all(isinstance(item, int) for item in prompt):
        prompts = [prompt]
    elif all(isinstance(item, str) for item in prompt):
        prompts = [encode(tokenizer, text, bounds, "prompt", special=special) for text in prompt]
    elif all(isinstance(item, list) for item in prompt):
        prompts = prompt
    else:
        raise ApiError(400, "prompt mixes texts and token ids", param="prompt")
    if not prompts:
        raise ApiError(400, "prompt is an empty list", param="prompt")
    return [_checked(tokenizer, ids, bounds) for ids in prompts]


def _checked(tokenizer: TextTokenizer, ids: list[int], bounds: Bounds) -> list[int]:
    if not ids:
        if tokenizer.bos_id is None:
            raise ApiError(400, "prompt is empty", param="prompt")
        return [tokenizer.bos_id]
    if len(ids) > bounds.max_length:
        raise bounds.too_long(f"the prompt has {len(ids)} tokens", "prompt")
    if max(ids) >= tokenizer.vocab_size:
        raise ApiError(
            400,
            f"prompt has the token id {max(ids)}; ids go from 0 to {tokenizer.vocab_size - 1}",
            param="prompt",
        )
    return ids
