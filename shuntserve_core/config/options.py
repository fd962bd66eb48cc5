"""From a plugin's class and a table's keys to an object: options are the class's attrs fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
from cattrs import Converter

from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.config.structure import make_converter
from shuntserve_core.registry import Registry

T = TypeVar("T")


def structure_options(
    cls: type[T],
    options: Mapping[str, Any],
    registry: Registry,
    mistakes: Mistakes,
    *,
    key: str,
    base: Path | None = None,
) -> T | None:
    """An object of the plugin's class with these options; None where a mistake was noted.

    `key` is the table that they are from; paths among them are relative to `base`.
    """
    if not attrs.has(cls):
        for option in options:
            mistakes.add(f"{key}.{option}", "unknown key", f"{cls.__name__} has no options")
        return None if options else cls()
    plugin: type[Any] = cls
    converter = make_converter(lambda named, value: _unknown(registry, named, value), base)
    try:
        made: T = converter.structure(options, plugin)
        return made
    except Exception as error:  # cattrs' own groups, or what the class itself raised
        mistakes.add_structure_error(error, key)
        return None


def plain_options(plugin: object) -> dict[str, Any]:
    """The options that a plugin has, as JSON for another process: paths in full, and defaults."""
    if not attrs.has(type(plugin)):
        return {}
    converter = Converter()
    converter.register_unstructure_hook(Path, str)
    plain: dict[str, Any] = converter.unstructure(plugin)
    return plain


def _unknown(registry: Registry, kind: str, name: str) -> str | None:
    return None if name in registry.entries(kind) else registry.remedy(kind, name)
