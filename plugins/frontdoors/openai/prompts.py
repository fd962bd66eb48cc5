"""A request body as prompt token ids, within bounds that are checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from shuntserve_core.text import Budget, Lost, OutOfBudget, TemplateError, TextTokenizer, TooLong
from shuntserve_plugins.frontdoors.openai.errors import ApiError


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
    messages: Sequence[Mapping[str, Any]],
    bounds: Bounds,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool | None = None,
    extra: Mapping[str, Any] | None = None,
) -> list[int]:
    """Render the chat template for messages as they were sent, and encode what it gives.

    Raises `ApiError` 400 where the model has no template, it refuses the messages, or it would
    not show all of them.
    """
    conversations = tokenizer.conversations(with_tools=bool(tools))
    if conversations is None:
        raise ApiError(
            400,
            "This model has no chat template; use /v1/completions.",
            param="messages",
            code="no_chat_template",
        )
    contents = (message.get("content") for message in messages)
    parts = sum(len(content) for content in contents if isinstance(content, list))
    if len(messages) + parts > bounds.max_length:  # each makes a token at least
        raise bounds.too_long(f"there are {len(messages)} messages of {parts} parts", "messages")
    continues = bool(continue_final_message)
    if continues and add_generation_prompt:
        raise ApiError(
            400,
            "add_generation_prompt and continue_final_message exclude each other",
            param="continue_final_message",
        )
    variables, documents = _variables(extra, documents)
    try:
        text = conversations.prompt(
            messages,
            tools=tools or None,
            documents=documents,
            add_generation_prompt=not continues and add_generation_prompt is not False,
            continue_final_message=continues,
            extra=variables,
            budget=bounds.budget,
        )
    except (TemplateError, RecursionError) as error:
        if isinstance(error, OutOfBudget) and not bounds.last:
            raise
        param = f"messages[{error.index}]" if isinstance(error, Lost) else "messages"
        raise ApiError(400, str(error), param=param, code="template_error") from error
    # Templates write the begin-of-text token themselves.
    return encode(tokenizer, text, bounds, "messages", special=False)


def _variables(
    extra: Mapping[str, Any] | None, documents: Sequence[Mapping[str, Any]] | None
) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]] | None]:
    """The template's further variables, and the documents, which may be among them."""
    variables = dict(extra or {})
    given = variables.pop("documents", None)
    if given is None:
        return variables, documents
    listed = isinstance(given, list) and all(isinstance(item, dict) for item in given)
    if documents is not None or not listed:
        raise ApiError(
            400,
            "documents are a list of objects, and given once",
            param="chat_template_kwargs.documents",
        )
    return variables, given


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
