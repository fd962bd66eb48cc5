"""Whether a model directory describes the model that a store's weights were cut from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json
from shuntserve_core.interfaces.store import ObjectMissing, StoreError
from shuntserve_core.quantization import method_of, read_config
from shuntserve_core.registry import Registry
from shuntserve_core.weights.checksum import checksum
from shuntserve_core.weights.layout import CONFIG, parse_model_name
from shuntserve_core.weights.stores import load_manifest, open_store

logger = logging.getLogger(__name__)

_ROPE = ("rope_parameters", "rope_scaling")
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
    rope: Mapping[str, Any] = next(
        (config[key] for key in _ROPE if isinstance(config.get(key), Mapping) and config[key]), {}
    )
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    counts = isinstance(hidden, int) and isinstance(heads, int) and heads
    derived = hidden // heads if counts else None  # type: ignore[operator]
    windows = config.get("use_sliding_window", True) and config.get("sliding_window")
    return {
        **{key: config.get(key) for key in _KEYS},
        **{key: bool(config.get(key)) for key in _SWITCHES},
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or derived,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "hidden_act": config.get("hidden_act") or "silu",
        "sliding_window": windows or None,
        "rope_theta": rope.get("rope_theta") or config.get("rope_theta") or 10000.0,
        "rope type": rope.get("rope_type") or rope.get("type") or "default",
        "rope": {
            key: value
            for key, value in rope.items()
            if key not in ("rope_theta", "rope_type", "type") and value is not None
        },
        "quantization": method_of(config),
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What two configs say differently of the arithmetic, a few words each."""
    first, second = arithmetic_of(one), arithmetic_of(other)
    return [
        f"{key} {str(first[key])[:60]} instead of {str(second[key])[:60]}"
        for key in first
        if first[key] != second[key]
    ]


def refuse_other_model(url: str, model: str, directory: Path, registry: Registry) -> None:
    """Raise `UserError` where `directory` describes another model than the store holds.

    A store that cannot be read from here, or that has no such model, is left to the nodes that load
    from it: their credentials may be others.
    """
    name = parse_model_name(model)
    try:
        store = open_store(url, registry)
        try:
            manifest = load_manifest(store, name)
            data, _ = store.get(name.prefix + CONFIG)
        finally:
            store.close()
    except ObjectMissing:
        return
    except StoreError as error:
        logger.warning("the model directory was not compared with the store's: %s", error)
        return
    record = manifest.files.get(CONFIG)
    if record is None or checksum([data]) != record.checksum:
        raise UserError(
            f"{CONFIG} in the store is damaged", where=f"{url}: {name}", remedy="push it again"
        )
    if differ := differences(read_config(directory), parse_json(data)):
        raise UserError(
            f"{directory / CONFIG} is of another model than the store's weights: "
            f"{', '.join(differ[:4])}",
            where=f"{url}: {name}",
            remedy="pull the store's own (shuntserve weights pull), or push this model",
        )
