"""Shapes that an answer must have: `response_format`, or vLLM's `structured_outputs`.

Both become one constraint for the engine, which decides whether it can compile it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.wire import ResponseFormat, Sampling, StructuredOutputs

MAX_DEPTH = 64
"""Levels of a JSON schema; what engines and the link to them take without trouble."""


def is_free(body: Sampling) -> bool:
    """Whether nothing is said of the answer's shape."""
    return body.response_format is None and body.structured_outputs is None


def constraint_of(body: Sampling) -> Mapping[str, Any] | None:
    """The constraint that a request asks for, by its kind; None for free text.

    Raises `ApiError` 400 for more than one, and for what cannot be one.
    """
    wanted = _format(body.response_format)
    if body.structured_outputs is None:
        return wanted
    if wanted is not None:
        raise ApiError(
            400,
            "response_format and structured_outputs exclude each other",
            param="structured_outputs",
        )
    return _structured(body.structured_outputs)


def _format(wanted: ResponseFormat | None) -> Mapping[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"json_object": True}
    if wanted.type == "structural_tag":
        if wanted.format is None:
            raise _incomplete("structural_tag", "format")
        tag = {"type": "structural_tag", "format": shallow(wanted.format, "response_format.format")}
        return {"structural_tag": msgspec.json.encode(tag).decode()}
    if wanted.json_schema is None:
        raise _incomplete("json_schema", "json_schema")
    if wanted.json_schema.schema is None:
        raise _incomplete("json_schema", "json_schema.schema")
    return {"json_schema": shallow(wanted.json_schema.schema, "response_format.json_schema.schema")}


def _incomplete(kind: str, name: str) -> ApiError:
    return ApiError(
        400,
        f"response_format of type {kind} needs {name}",
        param=f"response_format.{name}",
    )


def _structured(wanted: StructuredOutputs) -> Mapping[str, Any]:
    given = {
        field: value
        for field in wanted.__struct_fields__
        if (value := getattr(wanted, field)) is not None
    }
    if len(given) != 1:
        have = f"; this has {' and '.join(given)}" if given else ""
        kinds = ", ".join(wanted.__struct_fields__)
        raise ApiError(
            400,
            f"structured_outputs needs exactly one of {kinds}{have}",
            param="structured_outputs",
        )
    ((kind, value),) = given.items()
    param = f"structured_outputs.{kind}"
    if kind == "json":
        return {"json_schema": shallow(_object(value, param), param)}
    if kind == "structural_tag":
        shallow(_object(value, param), param)
    elif kind == "json_object" and not value:
        raise ApiError(400, "json_object is true or left out", param=param)
    elif kind == "choice" and len(set(value)) != len(value):
        raise ApiError(400, "choice has the same answer twice", param=param)
    return {kind: value}


def _object(value: str | Mapping[str, Any], param: str) -> Mapping[str, Any]:
    """A JSON object, given as such or as text."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ApiError(400, f"{param} is not a JSON object: {error}", param=param) from None


def shallow(schema: Mapping[str, Any], param: str) -> Mapping[str, Any]:
    """The schema, unless it is nested absurdly; raises `ApiError` 400."""
    level: list[Any] = [schema]
    for _ in range(MAX_DEPTH):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return schema
    raise ApiError(400, f"The schema has more than {MAX_DEPTH} levels.", param=param)
