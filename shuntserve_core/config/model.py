"""`[model]`: which model is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen
from attrs.validators import ge, in_, le, optional

from shuntserve_core.config.fields import resolved
from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.config.model_facts import NEEDED, facts_from_directory, facts_of
from shuntserve_core.errors import UserError
from shuntserve_core.types import DTYPE_BYTES, ModelSpec
from shuntserve_core.types.model import MOST_LAYERS, MOST_POSITIONS, MOST_WIDTH

_dtype = optional(in_(tuple(DTYPE_BYTES)))
_size = optional([ge(1), le(MOST_WIDTH)])


@frozen
class ModelTable:
    """Which model is served: a name, a folder, or its facts.  Facts given here override others."""

    name: str | None = None
    """A Hugging Face id (`meta-llama/Llama-3.1-70B`), a short name of a model that comes along
    (`llama-3.1-70b`), or a folder; with all facts given, any label."""
    path: str | None = None
    """Folder with the model's `config.json`, relative to this file."""
    layers: int | None = field(default=None, validator=optional([ge(1), le(MOST_LAYERS)]))
    """Transformer layers."""
    hidden: int | None = field(default=None, validator=_size)
    """Width of the residual stream."""
    heads: int | None = field(default=None, validator=_size)
    """Query heads of a layer."""
    kv_heads: int | None = field(default=None, validator=_size)
    """Key/value heads of a layer."""
    head_dim: int | None = field(default=None, validator=_size)
    """Elements of one head; hidden / heads only where neither this nor the model gives it."""
    intermediate: int | None = field(default=None, validator=_size)
    """Width of the MLP."""
    vocab: int | None = field(default=None, validator=_size)
    """Entries of the vocabulary."""
    tied_embeddings: bool | None = None
    """Whether the output projection is the embedding table."""
    family: str | None = field(default=None, validator=optional(in_(("llama", "qwen2", "qwen3"))))
    """Architecture: decides biases and query/key norms."""
    max_positions: int | None = field(default=None, validator=optional([ge(1), le(MOST_POSITIONS)]))
    """Longest context, tokens."""
    dtype: str | None = field(default=None, validator=_dtype)
    """Arithmetic and activations; by default as the model says, else float16."""
    weight_dtype: str | None = field(default=None, validator=_dtype)
    """How the layers' weights are stored on the GPU; by default as the model says, else `dtype`."""
    kv_dtype: str | None = field(default=None, validator=_dtype)
    """How keys and values are stored; by default `dtype`."""


def resolve_model(table: ModelTable, base: Path, mistakes: Mistakes) -> ModelSpec | None:
    """The model's facts; notes mistakes and returns None where they are not to be had."""
    given = {
        key: value
        for key, value in attrs.asdict(table).items()
        if value is not None and key not in ("name", "path")
    }
    name = table.name or ""
    facts = dict(given)
    # A name that is a folder is looked at even so: facts must not make another kind of it.
    here = bool(name) and (base / name / "config.json").is_file()
    if table.path is not None or here or not all(key in given for key in NEEDED):
        try:
            name, facts = _look_up(table, base, given)
        except UserError as error:
            mistakes.add("model.path" if table.path else "model.name", error.message, error.remedy)
            return None
    return _spec(name or "unnamed", facts, mistakes)


def _look_up(table: ModelTable, base: Path, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if table.path is not None:
        folder = resolved(base, table.path)
        return table.name or folder.name, facts_from_directory(folder, given)
    if table.name is None:
        raise UserError(
            "is missing",
            remedy=f'give name = "meta-llama/Llama-3.1-70B", path, or all of {", ".join(NEEDED)}',
        )
    return facts_of(table.name, base=base, given=given)


def _spec(name: str, facts: dict[str, Any], mistakes: Mistakes) -> ModelSpec | None:
    hidden, heads = facts["hidden"], facts["heads"]
    if "head_dim" not in facts:
        if hidden % heads:
            mistakes.add(
                "model.head_dim",
                f"is missing, and hidden {hidden} does not divide by {heads} heads",
                "give head_dim",
            )
            return None
        facts["head_dim"] = hidden // heads
    if heads % facts["kv_heads"]:
        mistakes.add(
            "model.kv_heads",
            f"{heads} heads do not divide by {facts['kv_heads']} KV heads",
            "give a divisor of heads",
        )
        return None
    dtype = facts.setdefault("dtype", "float16")
    facts.setdefault("weight_dtype", dtype)
    facts.setdefault("kv_dtype", dtype)
    try:
        return ModelSpec(name=name, **facts)
    except (TypeError, ValueError) as error:  # a config.json with nonsense in it
        mistakes.add("model", str(error.args[0]), "correct config.json or give the fact here")
        return None
