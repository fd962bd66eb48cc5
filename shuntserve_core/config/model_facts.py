"""The facts of a model: from a local directory, from those that come along, or from the hub."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shuntserve_core.errors import UserError, did_you_mean
from shuntserve_core.folders import refuse_odd_folder
from shuntserve_core.foreign import parse_json, read_bytes, whole_number
from shuntserve_core.hub import Asked, HubError, fetch
from shuntserve_core.peculiar import DEFAULT_HEADS, experts_of
from shuntserve_core.quantization import (
    bytes_by_layer,
    projections,
    quantization_of,
    with_companions,
)
from shuntserve_core.types.dtypes import PLAIN_DTYPES, dtype_bytes
from shuntserve_core.types.model import MOST_LAYERS, MOST_POSITIONS, MOST_WIDTH

FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Dense decoders with grouped-query attention and a gated MLP, by `model_type`."""

_FIELDS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "vocab": "vocab_size",
}
NEEDED = ("layers", "hidden", "heads", "kv_heads", "intermediate", "vocab")
"""What a model is described by where there is no config of it."""
_DTYPES = {"half": "float16", "float": "float32"}


def bundled_models() -> dict[str, Mapping[str, Any]]:
    """`config.json` fields of the models that are known offline, by hub id."""
    text = resources.files(__package__).joinpath("models.json").read_text(encoding="utf-8")
    known: dict[str, Mapping[str, Any]] = {}
    for name, facts in parse_json(text)["models"].items():
        for alias in (name, *facts["also"]):
            known[alias] = facts
    return known


def facts_of(
    name: str, *, base: Path, given: Mapping[str, Any] = MappingProxyType({})
) -> tuple[str, dict[str, Any]]:
    """The full name and the `ModelSpec` fields of a directory, bundled name or hub id.

    `base` is the folder that a relative directory is relative to; nothing is refused for want of a
    fact that is `given`.  Raises `UserError`.
    """
    if (base / name / "config.json").is_file():
        return name, facts_from_directory(base / name, given)
    known = bundled_models()
    by_short_name = {full.partition("/")[2].lower(): full for full in known}
    by_lower_name = {full.lower(): full for full in known}
    full = by_lower_name.get(name.lower()) or by_short_name.get(name.lower())
    if full is not None:
        return full, facts_from_config(known[full], given)
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f'unknown model "{name}"', remedy=did_you_mean(name, known))
    return name, facts_from_config(_from_hub(name, known), given)


def facts_from_directory(
    directory: Path, given: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """`ModelSpec` fields from a directory with a Hugging Face `config.json`; see `facts_of`."""
    file = directory / "config.json"
    refuse_odd_folder(directory, weights=False)
    try:
        config = parse_json(read_bytes(file))
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror}", remedy="name a folder with a config.json"
        ) from error
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}", remedy="download it again") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} holds no JSON object", remedy="download it again")
    return facts_from_config(with_companions(config, directory), given)


def facts_from_config(
    config: Mapping[str, Any], given: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """`ModelSpec` fields from the content of a Hugging Face `config.json`, and those `given`.

    `head_dim` is hidden / heads only where neither gives it.  Raises `UserError` for
    architectures that the cost model does not describe; what is given is not asked of the config,
    but no fact makes a dense model of a mixture of experts.
    """
    if experts := experts_of(config):
        raise UserError(
            f"it is a mixture of experts ({experts}), which the cost model does not describe",
            remedy="give a dense model",
        )
    facts = {**_shape(config, given), **given}
    facts["tied_embeddings"] = given.get(
        "tied_embeddings", bool(config.get("tie_word_embeddings", False))
    )
    if "max_positions" not in given:
        positions = config.get("max_position_embeddings", 8192)
        facts["max_positions"] = _count(positions, "max_position_embeddings", MOST_POSITIONS)
    if "dtype" not in given:
        dtype = str(config.get("torch_dtype") or config.get("dtype") or "float16")
        dtype = _DTYPES.get(dtype, dtype)
        facts["dtype"] = dtype if dtype in PLAIN_DTYPES else "float16"
    return {**facts, **_quantised(config, given, facts)}


def _shape(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Family and sizes, but for those that are given."""
    wanted = {field: key for field, key in _FIELDS.items() if field not in given}
    model_type = config.get("model_type", "")
    known = isinstance(model_type, str) and model_type in FAMILIES
    if not known and (wanted or "kv_heads" not in given):
        raise UserError(
            f"model_type {str(model_type)[:40]!r} is not a dense decoder that shuntserve knows",
            remedy=f"known: {', '.join(FAMILIES)}; or give the facts here: {', '.join(NEEDED)}",
        )
    missing = [key for key in wanted.values() if not isinstance(config.get(key), int)]
    if missing:
        raise UserError(
            f"config.json has no whole number for {', '.join(missing)}",
            remedy="give the facts (layers, hidden, ...) in [model]",
        )
    facts: dict[str, Any] = {
        field: _count(config[key], key, MOST_LAYERS if field == "layers" else MOST_WIDTH)
        for field, key in wanted.items()
    }
    if known:
        facts["family"] = FAMILIES[model_type]
    if "kv_heads" not in given:
        kv_heads = config.get("num_key_value_heads") or given.get("heads") or facts["heads"]
        facts["kv_heads"] = _count(kv_heads, "num_key_value_heads", MOST_WIDTH)
    if "head_dim" not in given:
        size = config.get("head_dim", DEFAULT_HEADS.get(str(model_type)))
        if size is not None:
            facts["head_dim"] = _count(size, "head_dim", MOST_WIDTH)
    return facts


def _count(value: object, key: str, most: int) -> int:
    try:
        return whole_number(value, 1, most)
    except ValueError as error:
        raise UserError(
            f"config.json: {key}: {error}", remedy="correct it, or give the fact in [model]"
        ) from error


def _quantised(
    config: Mapping[str, Any], given: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What is known of quantised weights; a `weight_dtype` that is given wins."""
    found = quantization_of(config)
    if found is None:
        return {}
    dtype = given.get("weight_dtype", found.weight_dtype)
    if dtype is None:
        raise UserError(
            f"quantisation {found.method!r} is not known",
            remedy='say how weights are stored: weight_dtype = "fp8", "int8", "int4" or "float16"',
        )
    said = {"quantization": found.method, "weight_dtype": dtype}
    if dtype != found.weight_dtype:
        return said
    head = facts.get("head_dim") or facts["hidden"] // facts["heads"]
    q_size, kv_size = facts["heads"] * head, facts["kv_heads"] * head
    sizes = projections(facts["hidden"], q_size, kv_size, facts["intermediate"])
    plain = dtype_bytes(facts["dtype"])
    return {**said, "weight_bytes": bytes_by_layer(found, facts["layers"], sizes, plain)}


def _from_hub(name: str, known: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        folder = fetch(Asked(name, patterns=("config.json",)))
    except HubError as error:
        raise UserError(
            f'cannot fetch config.json of "{name}" from the Hugging Face hub: {error.message}',
            remedy=f"{error.remedy}, or give path = a folder with its config.json; "
            f"{did_you_mean(name, known)}",
        ) from error
    try:
        config = parse_json(read_bytes(folder / "config.json"))
    except OSError as error:
        raise UserError(
            f'there is no config.json of "{name}" in {folder}',
            remedy="give path = a folder with one, or the facts (layers, hidden, ...) in [model]",
        ) from error
    except ValueError as error:
        raise UserError(
            f'config.json of "{name}" is not valid JSON: {error}',
            remedy="give path = a folder with a sound one",
        ) from error
    if not isinstance(config, dict):
        raise UserError(
            f'config.json of "{name}" holds no JSON object',
            remedy="give path = a folder with a sound one",
        )
    return config
