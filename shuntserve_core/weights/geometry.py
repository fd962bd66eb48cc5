"""The sizes that decide where a model's tensors are cut, from its Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json, whole_number
from shuntserve_core.types.model import MOST_LAYERS, MOST_WIDTH

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Values of `model_type` whose tensors have the names and shapes that the cut rules expect."""


@frozen
class Geometry:
    """Counts and widths of one decoder-only model."""

    family: str
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    """Rows of the embedding table, before padding."""
    tied_embeddings: bool

    def refuse(self, degree: int) -> str | None:
        """Why the model cannot be cut for this degree, or None."""
        if degree < 1:
            return "a tensor-parallel degree is at least 1"
        if self.heads % degree:
            return f"{self.heads} attention heads do not divide by {degree}"
        if self.kv_heads % degree and degree % self.kv_heads:
            return f"{self.kv_heads} KV heads neither divide by {degree} nor the other way round"
        return None


def geometry_of(config: bytes, *, where: str = "config.json") -> Geometry:
    """Read the sizes.  Raises `UserError` that names the key that is missing or wrong."""
    try:
        values = parse_json(config)
    except ValueError as error:
        raise UserError(
            f"not JSON: {error}", where=where, remedy="download config.json again"
        ) from error
    if not isinstance(values, dict):
        raise UserError("not a JSON object", where=where, remedy="download config.json again")
    family = values.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(
            f"models of type {str(family)[:40]!r} cannot be cut",
            where=f"{where}: model_type",
            remedy=f"the rules cover {', '.join(FAMILIES)}",
        )
    heads = _count(values, "num_attention_heads", where)
    kv = "num_key_value_heads"
    return Geometry(
        family=family,
        layers=_count(values, "num_hidden_layers", where, MOST_LAYERS),
        heads=heads,
        kv_heads=heads if values.get(kv) is None else _count(values, kv, where),
        vocab=_count(values, "vocab_size", where),
        tied_embeddings=bool(values.get("tie_word_embeddings", False)),
    )


def _count(values: Mapping[str, Any], key: str, where: str, most: int = MOST_WIDTH) -> int:
    try:
        return whole_number(values.get(key), 1, most)
    except ValueError as error:
        raise UserError(
            str(error), where=f"{where}: {key}", remedy="correct it in config.json"
        ) from error
