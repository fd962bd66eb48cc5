"""Functions that must be called.

They become a constraint for the engine.  A call that is forced needs no parsing: constrained to the
function's parameters, the answer's text is the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from shuntserve_plugins.frontdoors.openai.constraints import constraint_of, is_free, shallow
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.wire import ChatRequest, NamedTool, Tool


@frozen
class Shape:
    """What an answer must look like."""

    guided: Mapping[str, Any] | None = None
    tools: Sequence[Tool] | None = None
    """Shown to the chat template."""
    function: str | None = None
    """The function that the answer calls."""


_TEXT = Shape()


def answer_shape(body: ChatRequest) -> Shape:
    """What the request asks for; raises `ApiError` 400 for what cannot be promised."""
    if body.tools is None and body.tool_choice is None and is_free(body):
        return _TEXT
    guided = constraint_of(body)
    if not body.tools or body.tool_choice == "none":
        if isinstance(body.tool_choice, NamedTool) or body.tool_choice == "required":
            raise ApiError(400, "tool_choice names a tool, but tools is empty", param="tools")
        return Shape(guided)
    function = _forced(body)
    if guided is not None:
        param = "structured_outputs" if body.structured_outputs else "response_format"
        raise ApiError(400, f"{param} and a tool call exclude each other", param=param)
    parameters = shallow(function.function.parameters or {"type": "object"}, "tools")
    return Shape({"json_schema": parameters}, body.tools, function.function.name)


def _forced(body: ChatRequest) -> Tool:
    """The one tool that must be called."""
    tools = body.tools or []
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        named = [tool for tool in tools if tool.function.name == choice.function.name]
        if not named:
            raise ApiError(
                400, f"tools has no function {choice.function.name!r}", param="tool_choice"
            )
        return named[0]
    if choice == "required" and len(tools) == 1:
        return tools[0]
    raise ApiError(
        400,
        "The model's free choice of a tool is not supported: name one function in tool_choice, "
        "or give one tool and tool_choice 'required'.",
        param="tool_choice",
        code="unsupported_parameter",
    )
