"""What a field of a configuration class may hold, in words and as checks.

Configuration classes are plain attrs classes with attrs' own validators; this module reads types
and validators back, for error messages, for the JSON schema and for the reference in the docs.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import attrs
from attrs import frozen


@frozen
class Name:
    """Marks a field, `Annotated[str, Name("gpu")]`, that names something registered."""

    kind: str
    """A kind of plugin, as `shuntserve plugins` shows it."""


class RelativePath:
    """Marks a text that is a path relative to the configuration file.

    `Annotated[str, RelativePath()]`, or with words that are no paths,
    `Annotated[str, RelativePath("stderr", "stdout")]`.  An empty text stays empty.  A field of the
    type `pathlib.Path` needs no mark.
    """

    def __init__(self, *words: str) -> None:
        self.words = words


class Bound(NamedTuple):
    """A limit on a number: `>=` 0, for instance."""

    operator: str
    limit: float


_OPERATORS = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}


def name_of(kind: Any) -> Name | None:
    """The mark of a field that names something registered."""
    marks = (mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, Name))
    return next(marks, None)


def path_of(kind: Any) -> RelativePath | None:
    """The mark of a field that is a path; one without words for `pathlib.Path`."""
    if kind is Path:
        return RelativePath()
    marks = (mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, RelativePath))
    return next(marks, None)


def resolved(base: Path | None, path: str) -> Path:
    """A path that a file in the folder `base` gives: relative to it, `~` being the user's home."""
    written = Path(path).expanduser() if path.startswith("~") else Path(path)
    return written if base is None else base / written


def without_none(kind: Any) -> Any:
    """X for `X | None`, anything else as it is."""
    if get_origin(kind) in (Union, types.UnionType):
        rest = [part for part in get_args(kind) if part is not type(None)]
        if len(rest) == 1:
            return rest[0]
    return kind


def item_of(kind: Any) -> Any | None:
    """X for `tuple[X, ...]` and `list[X]`, else None."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return arguments[0]
    if origin is list:
        return arguments[0]
    return None


def validators_of(attribute: attrs.Attribute[Any]) -> Iterator[Any]:
    """The single validators of a field, out of any `and_` and `optional`."""
    pending = [attribute.validator]
    while pending:
        validator = pending.pop()
        if validator is None:
            continue
        inner = getattr(validator, "_validators", None) or getattr(validator, "validator", None)
        if inner is None:
            yield validator
        else:
            pending.extend(inner if isinstance(inner, tuple | list) else [inner])


def bounds_of(attribute: attrs.Attribute[Any]) -> tuple[Bound, ...]:
    """The limits that a field's validators set."""
    return tuple(
        Bound(validator.compare_op, validator.bound)
        for validator in validators_of(attribute)
        if hasattr(validator, "compare_op")
    )


def choices_of(attribute: attrs.Attribute[Any]) -> tuple[Any, ...]:
    """The values that a field may have, if there is a list of them; else empty."""
    kind = without_none(attribute.type)
    if get_origin(kind) is Literal:
        return get_args(kind)
    for validator in validators_of(attribute):
        if hasattr(validator, "options"):
            return tuple(validator.options)
    return ()


def type_words(kind: Any) -> str:
    """A type in the words of a person who writes TOML."""
    kind = without_none(kind)
    if name := name_of(kind):
        return (
            f"the name of {'an' if name.kind[0] in 'aeiou' else 'a'} {name.kind.replace('-', ' ')}"
        )
    if mark := path_of(kind):
        return " or ".join([f'"{word}"' for word in mark.words] + ["a path"])
    item = item_of(kind)
    if item is not None:
        return f"a list of {type_words(item).removeprefix('a ').removeprefix('an ')}s"
    if attrs.has(kind) or get_origin(kind) in (dict, Mapping, typing.Mapping):
        return "a table"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def field_words(attribute: attrs.Attribute[Any]) -> str:
    """What a field may hold: its type with its limits or choices."""
    choices = choices_of(attribute)
    if choices:
        return "one of " + ", ".join(_quoted(choice) for choice in choices)
    limits = _limit_words(bounds_of(attribute))
    words = type_words(attribute.type)
    return f"{words} {limits}" if limits else words


def _limit_words(bounds: tuple[Bound, ...]) -> str:
    by_operator = {bound.operator: f"{bound.limit:,.15g}".replace(",", "") for bound in bounds}
    if {">=", "<="} <= by_operator.keys():
        return f"from {by_operator['>=']} to {by_operator['<=']}"
    return " and ".join(f"{_OPERATORS[sign]} {limit}" for sign, limit in by_operator.items())


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
