"""Parameters of which some values are let through: what a chat template takes, and of streams."""

from __future__ import annotations

from typing import Any

from shuntserve_core.text import ChatTemplate
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.parameters import refused
from shuntserve_plugins.frontdoors.openai.wire import ChatRequest, Sampling, TokenizeRequest

_OWN = {
    "messages": "messages",
    "tools": "tools",
    "add_generation_prompt": "add_generation_prompt",
    "continue_final_message": "continue_final_message",
}
"""Variables of templates that are set by parameters of their own."""


def check_stream_options(body: Sampling) -> None:
    """Raise `ApiError` 400 for a stream that is to be what streams here are not."""
    options = body.stream_options
    if options is not None and options.include_obfuscation:
        kind = "chat" if isinstance(body, ChatRequest) else "completion"
        raise refused(kind, "stream_options", "stream_options.include_obfuscation")


def template_variables(
    template: ChatTemplate | None, body: ChatRequest | TokenizeRequest
) -> dict[str, Any] | None:
    """What the request sets of the template's variables, beside messages and tools.

    Raises `ApiError` 400 for what the template does not read: it would change nothing.
    """
    given = body.chat_template_kwargs or {}
    known = template.variables if template else frozenset()
    for name in given:
        if name in _OWN:
            raise _misplaced(name)
        if template and name not in known:
            raise _unread(name, sorted(known - _OWN.keys()))
    if body.documents and template and "documents" not in known:
        raise refused("chat", "documents")
    if not isinstance(body, ChatRequest):
        return given or None
    return {**_efforts(body, known), **given} or None


def _efforts(body: ChatRequest, known: frozenset[str]) -> dict[str, Any]:
    """OpenAI's parameters that some templates take under the same names."""
    found: dict[str, Any] = {}
    for name in ("reasoning_effort", "verbosity"):
        value = getattr(body, name)
        if value is not None and name in known:
            found[name] = value
        elif value is not None and (name, value) != ("verbosity", "medium"):
            raise refused("chat", name)
    return found


def _misplaced(name: str) -> ApiError:
    return ApiError(
        400,
        f"chat_template_kwargs.{name} is not supported: it is a parameter of its own; "
        f"send {name} beside chat_template_kwargs.",
        param=f"chat_template_kwargs.{name}",
        code="unsupported_parameter",
    )


def _unread(name: str, known: list[str]) -> ApiError:
    shown = f"it reads {', '.join(known)}" if known else "it reads none"
    path = f"chat_template_kwargs.{name[:100]}"
    return ApiError(
        400,
        f"{path} is not supported: the model's chat template does not read it; {shown}.",
        param=path,
        code="unsupported_parameter",
    )
