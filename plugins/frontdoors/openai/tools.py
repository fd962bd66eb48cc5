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
from shuntserve_plugins.frontdoors.openai.parameters import refused
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
            raise ApiError(
                400, "tool_choice asks for a call, but there are no tools", param="tool_choice"
            )
        return Shape(guided)
    index, function = _forced(body)
    if guided is not None:
        param = "structured_outputs" if body.structured_outputs else "response_format"
        raise ApiError(400, f"{param} and a tool call exclude each other", param=param)
    parameters = shallow(
        function.function.parameters or {"type": "object"}, f"tools[{index}].function.parameters"
    )
    return Shape({"json_schema": parameters}, body.tools, function.function.name)


def _forced(body: ChatRequest) -> tuple[int, Tool]:
    """The one tool that must be called, and its place in `tools`."""
    tools = body.tools or []
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        for index, tool in enumerate(tools):
            if tool.function.name == choice.function.name:
                return index, tool
        raise ApiError(
            400,
            f"tools has no function {choice.function.name!r}",
            param="tool_choice.function.name",
        )
    if choice == "required" and len(tools) == 1:
        return 0, tools[0]
    raise refused("chat", "tools" if choice is None else "tool_choice")
