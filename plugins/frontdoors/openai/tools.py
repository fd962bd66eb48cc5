"""Shapes that an answer must have: `response_format`, and functions that must be called.

Both become a constraint for the engine.  A call that is forced needs no parsing: constrained to
the function's parameters, the answer's text is the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.wire import ChatRequest, NamedTool, ResponseFormat, Tool

MAX_DEPTH = 64
"""Levels of a JSON schema; what engines and the link to them take without trouble."""


@frozen
class Shape:
    """What an answer must look like."""

    guided: Mapping[str, Any] | None = None
    tools: Sequence[Tool] | None = None
    """Shown to the chat template."""
    function: str | None = None
    """The function that the answer calls."""


def answer_shape(body: ChatRequest) -> Shape:
    """What the request asks for; raises `ApiError` 400 for what cannot be promised."""
    guided = _format(body.response_format)
    if not body.tools or body.tool_choice == "none":
        if isinstance(body.tool_choice, NamedTool) or body.tool_choice == "required":
            raise ApiError(400, "tool_choice names a tool, but tools is empty", param="tools")
        return Shape(guided)
    function = _forced(body)
    if guided is not None:
        raise ApiError(
            400, "response_format and a tool call exclude each other", param="response_format"
        )
    parameters = _shallow(function.function.parameters or {"type": "object"}, "tools")
    return Shape({"json_schema": parameters}, body.tools, function.function.name)


def _format(wanted: ResponseFormat | None) -> Mapping[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"json_object": True}
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise ApiError(
            400,
            "response_format of type json_schema needs json_schema.schema",
            param="response_format.json_schema",
        )
    return {"json_schema": _shallow(wanted.json_schema.schema, "response_format.json_schema")}


def _shallow(schema: Mapping[str, Any], param: str) -> Mapping[str, Any]:
    """The schema, unless it is nested absurdly."""
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return schema
    raise ApiError(400, f"The schema has more than {MAX_DEPTH} levels.", param=param)


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
