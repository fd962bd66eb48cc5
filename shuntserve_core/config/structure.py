"""From parsed TOML to attrs classes: cattrs, made strict, with every mistake reported at once.

Numbers are not made from texts nor whole numbers from fractions, unknown keys are refused, and a
field's attrs validators are run for each field by itself, so that two wrong keys of one table
make two errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.errors import IterableValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn, override

from shuntserve_core.config.fields import (
    bounds_of,
    choices_of,
    field_words,
    item_of,
    name_of,
    path_of,
    resolved,
    without_none,
)
from shuntserve_core.errors import did_you_mean

LARGEST_INTEGER = 2**63 - 1
"""TOML's own limit."""
OPTIONS_FIELD = "options"
"""A mapping field of this name takes all keys of its table that are not fields."""

NameLookup = Callable[[str, str], str | None]
"""(kind, name) -> remedy if there is no such name, else None."""


class Wrong(ValueError):
    """A value that cannot be used: what is wrong, and what would be right."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


def make_converter(unknown_name: NameLookup, base: Path | None = None) -> Converter:
    """A strict converter; `unknown_name` says what to do about names that are not registered.

    Paths become relative to `base`, the folder of the file.
    """
    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    for kind, read in ((bool, _boolean), (int, _integer), (float, _number), (str, _text)):
        converter.register_structure_hook(kind, read)
    converter.register_structure_hook_factory(
        lambda kind: item_of(kind) is not None, lambda kind: _list_reader(kind, converter)
    )
    converter.register_structure_hook_factory(
        lambda kind: get_origin(kind) is not None and issubclass_of_mapping(get_origin(kind)),
        lambda kind: _mapping_reader(kind, converter),
    )
    converter.register_structure_hook_factory(
        attrs.has, lambda kind: _class_reader(kind, converter)
    )
    converter.register_structure_hook_factory(
        lambda kind: name_of(kind) is not None, lambda kind: _name_reader(kind, unknown_name)
    )
    converter.register_structure_hook_factory(
        lambda kind: path_of(kind) is not None, lambda kind: _path_reader(kind, base)
    )
    converter.register_structure_hook(Path, _path_reader(Path, base))  # cattrs has its own
    return converter


def issubclass_of_mapping(origin: Any) -> bool:
    """Whether a generic's origin is a mapping."""
    return isinstance(origin, type) and issubclass(origin, Mapping)


def shown(value: object) -> str:
    """A value as a person would write it in TOML, cut short."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "a list"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    text = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _boolean(value: object, _: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong(f"{shown(value)} is not a truth value", "write true or false, without quotes")
    return value


def _integer(value: object, _: Any) -> int:
    if isinstance(value, float) and value.is_integer():  # 24e9 is how people write large ones
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        remedy = "write digits without quotes" if isinstance(value, str) else "write a whole number"
        raise Wrong(f"{shown(value)} is not a whole number", remedy)
    if abs(value) > LARGEST_INTEGER:
        raise Wrong(f"{shown(value)} is too large", f"at most {LARGEST_INTEGER}")
    return value


def _number(value: object, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        remedy = "write digits without quotes" if isinstance(value, str) else "write a number"
        raise Wrong(f"{shown(value)} is not a number", remedy)
    if abs(value) > 1e300 or not math.isfinite(value):
        raise Wrong(f"{shown(value)} is not a finite number", "leave the key out for no limit")
    return float(value)


def _text(value: object, _: Any) -> str:
    if not isinstance(value, str):
        raise Wrong(f"{shown(value)} is not a text", "put it in quotes")
    return value


def _name_reader(kind: Any, unknown_name: NameLookup) -> Callable[[object, Any], str]:
    mark = name_of(kind)
    assert mark is not None

    def read(value: object, _: Any) -> str:
        name = _text(value, str)
        remedy = unknown_name(mark.kind, name)
        if remedy is not None:
            raise Wrong(f"unknown {mark.kind.replace('-', ' ')} {shown(name)}", remedy)
        return name

    return read


def _path_reader(kind: Any, base: Path | None) -> Callable[[object, Any], Any]:
    mark = path_of(kind)
    assert mark is not None

    def read(value: object, _: Any) -> Any:
        text = _text(value, str)
        if "\0" in text:
            raise Wrong(f"{shown(text)} is no path", "leave out the zero byte")
        if kind is Path:
            return resolved(base, text).absolute()
        return text if not text or text in mark.words else str(resolved(base, text).absolute())

    return read


def _list_reader(kind: Any, converter: Converter) -> Callable[[object, Any], Any]:
    item: Any = item_of(kind)
    make = tuple if get_origin(kind) is tuple else list

    def read(value: object, _: Any) -> Any:
        if not isinstance(value, list):
            example = "[[...]]" if attrs.has(item) else "[ ... ]"
            raise Wrong(f"{shown(value)} is not a list", f"write it in brackets: {example}")
        read_items, errors = [], []
        for index, element in enumerate(value):
            try:
                read_items.append(converter.structure(element, item))
            except Exception as error:
                note = f"element {index}"
                error.__notes__ = [IterableValidationNote(note, index, item)]
                errors.append(error)
        if errors:
            raise IterableValidationError("wrong elements", errors, kind)
        return make(read_items)

    return read


def _mapping_reader(kind: Any, converter: Converter) -> Callable[[object, Any], Any]:
    _, item = get_args(kind)

    def read(value: object, _: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise Wrong(f"{shown(value)} is not a table", "write { key = value }")
        read_items, errors = {}, []
        for key, element in value.items():
            try:
                read_items[key] = converter.structure(element, item)
            except Exception as error:
                error.__notes__ = [IterableValidationNote(f"key {key}", key, item)]
                errors.append(error)
        if errors:
            raise IterableValidationError("wrong values", errors, kind)
        return read_items

    return read


def _class_reader(cls: type, converter: Converter) -> Callable[[object, Any], Any]:
    attrs.resolve_types(cls)
    attributes = {attribute.name: attribute for attribute in attrs.fields(cls) if attribute.init}
    open_ended = OPTIONS_FIELD in attributes and issubclass_of_mapping(
        get_origin(attributes[OPTIONS_FIELD].type)
    )
    overrides: dict[str, Any] = {
        name: override(struct_hook=_field_reader(attribute, converter))
        for name, attribute in attributes.items()
    }
    structure: Callable[[Mapping[str, Any], Any], Any] = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, **overrides
    )

    def read(value: object, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise Wrong(f"{shown(value)} is not a table", "write { key = value } or [table]")
        if open_ended:
            keys = attributes.keys() - {OPTIONS_FIELD}
            rest = {key: item for key, item in value.items() if key not in keys}
            value = {key: item for key, item in value.items() if key in keys}
            value[OPTIONS_FIELD] = rest
        return structure(value, cls)

    return read


def _field_reader(
    attribute: attrs.Attribute[Any], converter: Converter
) -> Callable[[object, Any], Any]:
    kind = without_none(attribute.type)

    def read(value: Any, _: Any) -> Any:
        if kind is Any or kind is None or (value is None and kind is not attribute.type):
            return value
        choices = choices_of(attribute)
        if choices and value not in choices:
            words = field_words(attribute)
            hint = ""
            if isinstance(value, str):
                hint = did_you_mean(value, [str(c) for c in choices]).partition("available")[0]
            raise Wrong(f"{shown(value)} is not allowed", f"{hint}{words}")
        result = value if choices else converter.structure(value, kind)
        for bound in bounds_of(attribute):
            if not _within(result, bound.operator, bound.limit):
                raise Wrong(f"{shown(value)} is out of range", f"give {field_words(attribute)}")
        return result

    return read


def _within(value: float, operator: str, limit: float) -> bool:
    return {
        ">=": value >= limit,
        ">": value > limit,
        "<=": value <= limit,
        "<": value < limit,
    }[operator]
