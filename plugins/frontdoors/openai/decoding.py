"""A body as its type, or an error that names the field at fault, however deep it is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from shuntserve_core.errors import MOST_NAMES
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.parameters import TABLES, Ruling, unknown

T = TypeVar("T")
SHOWN = 200
"""Characters of a client's own words that an error repeats."""
MAX_NULLS = 16
"""Unknown fields with null that a body may have, each of which costs reading it once more."""
LIKE = 0.85
"""How much alike, by `difflib`, an unknown name and the one that it is taken for must be: one
letter in seven may differ, so that no hint leads from one parameter to another."""
_LONGEST = 1000
"""Characters at the end of a message in which the place of the mistake is looked for."""
_FIELD = re.compile(r"^Object (?P<kind>contains unknown|missing required) field `(?P<name>.*)`$")
_STEP = re.compile(r"\[[^\]]*\]|[^.\[]+")


def decode(kind: str, decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The body of a `kind` of request (a name in `parameters.TABLES`) as its type.

    Raises `ApiError` 400 that names the field at fault.
    """
    try:
        return _decode(decoder, body)
    except msgspec.ValidationError as error:
        raise _invalid(kind, str(error), decoder.type) from None
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        reason = str(error) if isinstance(error, msgspec.DecodeError) else "not UTF-8"
        if isinstance(error, RecursionError):
            reason = "nested too deeply"
        raise ApiError(400, f"The body is not JSON: {reason}.", code="invalid_json") from None


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Unknown fields that are null are left out: they ask for nothing."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        if b"null" not in body or _unknown(str(error)) is None:
            raise
    loose = msgspec.json.decode(body)
    for _ in range(MAX_NULLS):
        try:
            return msgspec.convert(loose, decoder.type)
        except msgspec.ValidationError as error:
            if not _drop_null(loose, _unknown(str(error))):
                raise
    return msgspec.convert(loose, decoder.type)


def _unknown(message: str) -> str | None:
    """The path of the unknown field that a message is about, if it is about one."""
    what, where = _place(message)
    match = _FIELD.match(what)
    if match is None or match["kind"].startswith("missing"):
        return None
    return f"{where}.{match['name']}" if where else match["name"]


def _drop_null(value: Any, path: str | None) -> bool:
    """Take a field out of a body if it is there and null."""
    *steps, last = _STEP.findall(path) if path else [""]
    for step in steps:
        if step[0] == "[" and isinstance(value, list):
            value = value[int(step[1:-1])] if step[1:-1].isdigit() else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
    if not isinstance(value, dict) or value.get(last, 0) is not None:
        return False
    del value[last]
    return True


def _invalid(kind: str, message: str, wanted: Any) -> ApiError:
    what, where = _place(message)
    match = _FIELD.match(what)
    if match is None:
        return _wrong(kind, what, where)
    name = f"{where}.{match['name']}" if where else match["name"]
    if match["kind"].startswith("missing"):
        return ApiError(
            400,
            f"Missing required parameter: {name!r}.",
            param=name,
            code="missing_required_parameter",
        )
    hint = "" if where else unknown(kind, name)
    hint = hint or _hint(match["name"], _supported(kind, fields_at(wanted, where or ""), where))
    return ApiError(
        400,
        f"Unknown parameter: {name!r}; {hint}" if hint else f"Unknown parameter: {name!r}.",
        param=name,
        code="unknown_parameter",
    )


def _wrong(kind: str, what: str, where: str | None) -> ApiError:
    """A value that its type does not admit: not supported, or just wrong."""
    row = TABLES[kind].get(_STEP.findall(where)[0]) if where else None
    if row is not None and where is not None and row.by_type:
        return row.refusal(where)
    shown = f"{where}: {what}" if where else what
    return ApiError(400, f"{shown}.", param=where, code="invalid_value")


def _supported(kind: str, names: list[str], where: str | None) -> list[str]:
    """Of names at a place, those that a misspelt one may be taken for."""
    table = TABLES[kind]
    if where:
        return names
    return [name for name in names if table[name].ruling is not Ruling.REFUSED]


def _hint(name: str, known: list[str]) -> str:
    """What a misspelt name is taken for, and where there are few, what there is."""
    plain = {_plain(other): other for other in known}
    close = difflib.get_close_matches(_plain(name)[:100], plain, n=1, cutoff=LIKE)
    hint = f"did you mean {plain[close[0]]!r}?" if close else ""
    listed = f"available: {', '.join(sorted(known))}." if 0 < len(known) <= MOST_NAMES else ""
    return " ".join(filter(None, (hint, listed)))


def _plain(name: str) -> str:
    """A name without what conventions differ in: `maxTokens` and `max-tokens` are `max_tokens`."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


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
