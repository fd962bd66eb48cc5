"""Sizes and constants of a model, from its Hugging Face `config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json, read_bytes, whole_number
from shuntserve_core.peculiar import PLAIN, head_size, quantised, unknown_to_all, windows_of
from shuntserve_core.positions import odd_rotary, rotary_kind, rotary_table, rotary_theta
from shuntserve_core.quantization import with_companions
from shuntserve_core.types.model import MOST_LAYERS, MOST_WIDTH

FAMILIES = ("llama", "qwen2", "qwen3")
ROTARY = ("default", "linear", "llama3")
"""Kinds of rotary positions."""


@frozen
class Rope:
    """Rotary position embeddings."""

    theta: float
    scaling: str = "default"
    """`default`, `linear` or `llama3`."""
    parameters: Mapping[str, float] = field(factory=dict)
    """As in the config: `factor` and, for `llama3`, its three others."""


@frozen
class Geometry:
    """What the arithmetic needs to know of a model."""

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    epsilon: float
    """Added to the mean square in norms."""
    tied: bool
    rope: Rope

    @property
    def shards(self) -> int:
        """Logical shards: the largest degree that cuts KV heads and MLP evenly.

        Every placement computes the same products, one a shard, and adds them in the same order;
        a rank of a stage with degree t has `shards / t` of them.
        """
        return math.gcd(self.kv_heads, self.intermediate)

    @property
    def query_norm(self) -> bool:
        """Whether queries and keys are normalised a head at a time."""
        return self.family == "qwen3"

    @property
    def biases(self) -> bool:
        """Whether query, key and value projections have biases."""
        return self.family == "qwen2"

    def refuse(self, degree: int) -> str | None:
        """Why a stage cannot have this tensor-parallel degree, or None."""
        if self.shards % degree:
            return (
                f"degree {degree} does not divide {self.shards}, the most parts that "
                f"{self.kv_heads} KV heads and an MLP of {self.intermediate} cut into"
            )
        return None


def read_geometry(model_dir: str | Path) -> Geometry:
    """Read `config.json`.  Raises `UserError` for a model that this engine cannot run."""
    path = Path(model_dir) / "config.json"
    try:
        config = with_companions(parse_json(read_bytes(path)), path.parent)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"not a usable model: {error!r}"[:400],
            where=str(path),
            remedy="push the model again from a sound checkpoint",
        ) from error
    return geometry_from(config, where=str(path))


def geometry_from(config: Mapping[str, Any], *, where: str) -> Geometry:
    """The geometry that a config describes.  Raises `UserError` as `read_geometry` does."""
    if reason := _unsupported(config):
        other = "use another engine, or a Llama, Qwen2 or Qwen3 model"
        raise UserError(
            f"the embedded engine cannot run this model: {reason}",
            where=where,
            remedy=PLAIN if quantised(config) else other,
        )
    try:
        return _geometry(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"not a usable model: {error!r}"[:400],
            where=where,
            remedy="push the model again from a sound checkpoint",
        ) from error


def _geometry(config: Mapping[str, Any]) -> Geometry:
    heads, hidden = _width(config["num_attention_heads"]), _width(config["hidden_size"])
    return Geometry(
        family=str(config["model_type"])[:40],
        layers=whole_number(config["num_hidden_layers"], 1, MOST_LAYERS),
        hidden=hidden,
        heads=heads,
        kv_heads=_width(config.get("num_key_value_heads") or heads),
        head_dim=_width(head_size(config, hidden, heads)),
        intermediate=_width(config["intermediate_size"]),
        vocab=_width(config["vocab_size"]),
        epsilon=float(config["rms_norm_eps"]),
        tied=bool(config.get("tie_word_embeddings")),
        rope=_rope(config),
    )


def _width(value: object) -> int:
    return whole_number(value, 1, MOST_WIDTH)


def _rope(config: Mapping[str, Any]) -> Rope:
    table = rotary_table(config)
    numbers = {k: float(v) for k, v in table.items() if isinstance(v, int | float)}
    return Rope(float(rotary_theta(config)), rotary_kind(config), numbers)


def _unsupported(config: Mapping[str, Any]) -> str | None:
    family = str(config.get("model_type"))[:40]
    if reason := quantised(config):
        return reason
    if family not in FAMILIES:
        return f"its type is {family!r}"
    if reason := odd_rotary(config, ROTARY):
        return reason
    if config.get("mlp_bias") or (family != "qwen2" and config.get("attention_bias")):
        return "it has biases"
    return unknown_to_all(config) or windows_of(config)
