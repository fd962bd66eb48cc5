"""Whether a model directory describes the model that a store's weights were cut from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shuntserve_core.config.model_facts import NEEDED, facts_from_directory
from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json
from shuntserve_core.interfaces.store import StoreError
from shuntserve_core.peculiar import arithmetic_by_name, head_size, other_layers
from shuntserve_core.positions import rotary_kind, rotary_table, rotary_theta
from shuntserve_core.quantization import method_of, read_config
from shuntserve_core.registry import Registry
from shuntserve_core.types import ModelSpec
from shuntserve_core.weights.accounting import BUFFERS, PLAIN_NUMBERS, expected_shapes
from shuntserve_core.weights.checksum import checksum
from shuntserve_core.weights.cutting import cut_of, shard_shape
from shuntserve_core.weights.layout import CONFIG, parse_model_name
from shuntserve_core.weights.manifest import Manifest, parse_shard_path
from shuntserve_core.weights.stores import load_manifest, open_store

_KEYS = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "rms_norm_eps",
)
_SWITCHES = ("attention_bias", "mlp_bias", "use_sliding_window")


def arithmetic_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the arithmetic, in one form whatever version wrote it."""
    rope = rotary_table(config)
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    counts = isinstance(hidden, int) and isinstance(heads, int) and heads
    windows = config.get("use_sliding_window", True) and config.get("sliding_window")
    return {
        **{key: config.get(key) for key in _KEYS},
        **{key: bool(config.get(key)) for key in _SWITCHES},
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_size(config, hidden, heads) if counts else config.get("head_dim"),  # type: ignore[arg-type]
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "hidden_act": config.get("hidden_act") or "silu",
        "sliding_window": windows or None,
        "rope_theta": rotary_theta(config),
        "rope type": rotary_kind(config),
        "rope": {
            key: value
            for key, value in rope.items()
            if key not in ("rope_theta", "rope_type", "type") and value is not None
        },
        "quantization": method_of(config),
        "dtype": config.get("torch_dtype") or config.get("dtype"),
        "layer_types": other_layers(config),
        **arithmetic_by_name(config),
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What two configs say differently of the arithmetic, a few words each."""
    first, second = arithmetic_of(one), arithmetic_of(other)
    unsaid = {"dtype"} if None in (first["dtype"], second["dtype"]) else set()
    return [
        f"{key} {str(first.get(key))[:60]} instead of {str(second.get(key))[:60]}"
        for key in {**first, **second}
        if key not in unsaid and first.get(key) != second.get(key)
    ]


class StoreUnreadable(UserError):
    """The store does not answer, or has no such model."""


def refuse_other_model(url: str, model: str, directory: Path, registry: Registry) -> None:
    """Raise `UserError` where `directory` describes another model than the store holds.

    Raises `StoreUnreadable` where the store cannot be read from here, or has no such model.
    """
    name = parse_model_name(model)
    store = open_store(url, registry)
    try:
        manifest = load_manifest(store, name)
        data, _ = store.get(name.prefix + CONFIG)
    except StoreError as error:
        raise StoreUnreadable(
            f"the model directory cannot be compared with the store's model: {error.message}",
            where=error.where or f"{url}: {name}",
            remedy=error.remedy or "make the store readable from here, and serve again",
        ) from error
    finally:
        store.close()
    record = manifest.files.get(CONFIG)
    if record is None or checksum([data]) != record.checksum:
        raise UserError(
            f"{CONFIG} in the store is damaged", where=f"{url}: {name}", remedy="push it again"
        )
    stored = parse_json(data)
    if differ := differences(read_config(directory), stored):
        raise UserError(
            f"{directory / CONFIG} is of another model than the store's weights: "
            f"{', '.join(differ[:4])}",
            where=f"{url}: {name}",
            remedy="pull the store's own (shuntserve weights pull), or push this model",
        )
    _refuse_odd_shards(manifest, stored, f"{url}: {name}")


def _refuse_odd_shards(manifest: Manifest, config: Mapping[str, Any], where: str) -> None:
    """Raise `UserError` for shards that are not what pushing a model of this config stores.

    They are from a version that did not look, or from somebody else.
    """
    remedy = "push the checkpoint again with --replace: what cannot be served is refused there"
    try:
        expected = expected_shapes(config, CONFIG)
    except UserError as error:
        raise UserError(
            f"what it stores cannot be served: {error}", where=where, remedy=remedy
        ) from error
    for path, record in manifest.tensors.items():
        degree, rank, name = parse_shard_path(path)
        whole = expected.get(name)
        if whole is None:
            if BUFFERS.search(name):
                continue
            raise UserError(
                f"it stores {name}, which {CONFIG} does not imply", where=where, remedy=remedy
            )
        cut = cut_of(name, whole, manifest.geometry, degree, rank)
        if record.shape != shard_shape(whole, cut) or record.dtype not in PLAIN_NUMBERS:
            raise UserError(
                f"{path} is {record.dtype} {list(record.shape)}, but {CONFIG} implies "
                f"{list(shard_shape(whole, cut))} of plain numbers",
                where=where,
                remedy=remedy,
            )


def refuse_other_facts(model: ModelSpec, directory: Path, where: str) -> None:
    """Raise `UserError` where `directory` describes another model than the one that was planned."""
    facts = facts_from_directory(directory, {"weight_dtype": model.weight_dtype})
    facts.setdefault("head_dim", facts["hidden"] // facts["heads"])
    differ = [
        f"{name} {facts[name]} instead of {getattr(model, name)}"
        for name in (*NEEDED, "head_dim", "tied_embeddings")
        if facts[name] != getattr(model, name)
    ]
    if differ:
        raise UserError(
            f"{directory / CONFIG} is of another model than {model.name} in [model]: "
            f"{', '.join(differ[:4])}",
            where=where,
            remedy="name the same model in both: path in [model] is enough",
        )
