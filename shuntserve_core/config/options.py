"""From a plugin's class and a table's keys to an object: options are the class's attrs fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.config.structure import make_converter
from shuntserve_core.registry import Registry


def structure_options(
    kind: str,
    name: str,
    options: Mapping[str, Any],
    registry: Registry,
    mistakes: Mistakes,
    *,
    key: str = "",
) -> Any:
    """An object of the plugin's class with these options; None where a mistake was noted.

    `key` is the table that they are from, where it is not called like the kind.

    Raises `UserError` where the plugin cannot be imported.
    """
    cls = registry.get(kind, name)
    if not attrs.has(cls):
        for option in options:
            mistakes.add(
                f"{key or kind}.{option}", "unknown key", f"{kind} {name!r} has no options"
            )
        return None if options else cls()
    converter = make_converter(lambda named, value: _unknown(registry, named, value))
    try:
        return converter.structure(options, cls)
    except Exception as error:  # cattrs' own groups, or what the class itself raised
        mistakes.add_structure_error(error, key or kind)
        return None


def _unknown(registry: Registry, kind: str, name: str) -> str | None:
    return None if name in registry.entries(kind) else registry.remedy(kind, name)
