"""A body as its type, or an error that names the field at fault, however deep it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from shuntserve_core.errors import did_you_mean
from shuntserve_plugins.frontdoors.openai.errors import ApiError

T = TypeVar("T")
SHOWN = 200
"""Characters of a client's own words that an error repeats."""
_LONGEST = 1000
"""Characters at the end of a message in which the place of the mistake is looked for."""
_FIELD = re.compile(r"^Object (?P<kind>contains unknown|missing required) field `(?P<name>.*)`$")
_STEP = re.compile(r"\[[^\]]*\]|[^.\[]+")


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A body as its type; raises `ApiError` 400 that names the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), decoder.type) from None
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        reason = str(error) if isinstance(error, msgspec.DecodeError) else "not UTF-8"
        if isinstance(error, RecursionError):
            reason = "nested too deeply"
        raise ApiError(400, f"The body is not JSON: {reason}.", code="invalid_json") from None


def _invalid(message: str, wanted: Any) -> ApiError:
    what, where = _place(message)
    match = _FIELD.match(what)
    if match is None:
        shown = f"{where}: {what}" if where else what
        return ApiError(400, f"{shown}.", param=where, code="invalid_value")
    name = f"{where}.{match['name']}" if where else match["name"]
    if match["kind"].startswith("missing"):
        return ApiError(
            400,
            f"Missing required parameter: {name!r}.",
            param=name,
            code="missing_required_parameter",
        )
    known = fields_at(wanted, where or "")
    return ApiError(
        400,
        f"Unknown parameter: {name!r}; {did_you_mean(match['name'], known)}.",
        param=name,
        code="unknown_parameter",
    )


def _place(message: str) -> tuple[str, str | None]:
    """What is wrong, and where, from a message that may hold all that the client wrote."""
    _, found, place = message[-_LONGEST:].rpartition(" - at `$")
    if not found:
        return _short(message), None
    what = message[: len(message) - len(place) - len(found)]
    return _short(what), place.removeprefix(".").removesuffix("`")[:SHOWN]


def _short(text: str) -> str:
    """A text without its middle: messages say at their end what quotes a name at the start."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 20]}...{text[-10:]}"


def fields_at(wanted: Any, path: str) -> list[str]:
    """Names that objects at a path such as `messages[0].content[1]` may have, in a body of type
    `wanted`; of every type that may stand there."""
    types = list(_alternatives(inspect.type_info(wanted)))
    for step in _STEP.findall(path):
        inner = [kind for one in types for kind in _inside(one, step)]
        types = [alternative for kind in inner for alternative in _alternatives(kind)]
    structs = [one for one in types if isinstance(one, inspect.StructType)]
    names = [name for struct in structs for name in _names(struct)]
    return list(dict.fromkeys(names))


def _names(struct: inspect.StructType) -> Iterator[str]:
    if struct.tag_field is not None:
        yield struct.tag_field
    for field in struct.fields:
        yield field.encode_name


def _alternatives(kind: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(kind, inspect.UnionType):
        yield from kind.types
    else:
        yield kind


def _inside(kind: inspect.Type, step: str) -> Iterator[inspect.Type]:
    """The types behind one step of a path: a field's name, or an index or key in brackets."""
    if isinstance(kind, inspect.StructType):
        yield from (field.type for field in kind.fields if field.encode_name == step)
    elif isinstance(kind, inspect.ListType):
        yield kind.item_type
    elif isinstance(kind, inspect.DictType):
        yield kind.value_type
