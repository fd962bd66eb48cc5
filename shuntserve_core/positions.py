"""Rotary positions, as a `config.json` describes them, and what is odd about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

PLACES = ("rope_scaling", "rope_parameters")
"""Where older and newer configs keep them; transformers looks in this order."""
DEFAULT_THETA = 10000.0
KINDS = ("default", "linear", "llama3", "yarn")
"""That some engine here computes."""
_NAMES = frozenset({"rope_type", "type", "rope_theta"})
_NUMBERS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
}
"""What each kind cannot do without."""
_MORE: Mapping[str, tuple[str, ...]] = {
    "yarn": (
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    )
}
_ALL = frozenset(key for keys in (*_NUMBERS.values(), *_MORE.values()) for key in keys)
_PARTIAL = ("partial_rotary_factor", "rotary_pct", "rotary_emb_fraction", "rope_percent")
_THETAS = ("rotary_emb_base", "rope_base")
"""What others call `rope_theta`, and transformers does not read."""


def rotary_table(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table of rotary positions; empty where there is none."""
    found = [config.get(place) for place in PLACES]
    return next((table for table in found if isinstance(table, Mapping) and table), {})


def rotary_kind(config: Mapping[str, Any]) -> str:
    """`default`, `linear`, `llama3`, `yarn`, ..."""
    table = rotary_table(config)
    return str(table.get("rope_type") or table.get("type") or "default")[:40]


def rotary_theta(config: Mapping[str, Any]) -> Any:
    """The base, as the config gives it."""
    return rotary_table(config).get("rope_theta") or config.get("rope_theta") or DEFAULT_THETA


def odd_rotary(config: Mapping[str, Any], kinds: tuple[str, ...]) -> str | None:
    """What of rotary positions an engine that knows these kinds would compute otherwise, or None.

    Kinds and their numbers as in transformers 5 (`modeling_rope_utils`).
    """
    for place in PLACES:
        value = config.get(place)
        if value is not None and not isinstance(value, Mapping):
            return f"{place} is {str(value)[:40]!r}"
    if all(config.get(place) for place in PLACES) and _differ(config):
        return f"{' and '.join(PLACES)} say different things"
    table, kind = rotary_table(config), rotary_kind(config)
    if kind not in kinds:
        return f"position embeddings of type {kind!r}"
    return _partial(config, table) or _odd_numbers(config, table, kind)


def _differ(config: Mapping[str, Any]) -> bool:
    one, other = (
        _said({**config, **dict.fromkeys(PLACES), place: config[place]}) for place in PLACES
    )
    return one != other


def _said(config: Mapping[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    table = rotary_table(config)
    rest = {key: value for key, value in table.items() if key not in _NAMES and value is not None}
    return rotary_kind(config), rotary_theta(config), rest


def _partial(config: Mapping[str, Any], table: Mapping[str, Any]) -> str | None:
    """That only a part of each head is rotated."""
    for key in _PARTIAL:
        for place in (config, table):
            if place.get(key) not in (None, 1):
                return f"{key} is {str(place[key])[:40]}"
    return None


def _odd_numbers(config: Mapping[str, Any], table: Mapping[str, Any], kind: str) -> str | None:
    theta = rotary_theta(config)
    if not _is_positive(theta):
        return f"rope_theta is {str(theta)[:40]!r}"
    for key in _THETAS:
        if config.get(key) not in (None, theta):
            return f"{key} is {str(config[key])[:40]} and rope_theta {theta}"
    for key in _NUMBERS[kind]:
        if not _is_positive(table.get(key)):
            return f"rotary positions of type {kind!r} without a number for {key}"
    original = "original_max_position_embeddings"
    if original in _NUMBERS[kind] and config.get(original) not in (None, table[original]):
        return f"{original} is {str(config[original])[:40]}, and in its table {table[original]}"
    known = {*_NUMBERS[kind], *_MORE.get(kind, ())}
    for key, value in table.items():
        if key in _NAMES or key in _PARTIAL:
            continue
        if key in known:
            if not isinstance(value, int | float):
                return f"{key} of rotary positions is {str(value)[:40]!r}"
        elif value is not None and key not in _ALL:  # what other kinds have does nothing here
            return f"rotary positions with {str(key)[:40]!r}"
    return None


def _is_positive(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf  # type: ignore[operator]
