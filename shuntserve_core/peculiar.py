"""What a `config.json` names that changes the arithmetic, and that nothing here knows.

Whoever ignored it would answer, but not as the model does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shuntserve_core.quantization import method_of

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_SCALES = (
    "attention_multiplier",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "scale_emb",
    "scale_depth",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "query_pre_attn_scalar",
    "clip_qkv",
    "attn_temperature_tuning",
)
_SWITCHES = ("qk_norm", "use_qk_norm", "qk_layernorm", "alibi", "parallel_attn", "rope_interleaved")
PLAIN = "push and serve a checkpoint whose weights are plain float16, bfloat16 or float32 instead"


def experts_of(config: Mapping[str, Any]) -> str:
    """The key or type by which a config says mixture of experts; empty for a dense model."""
    kind = str(config.get("model_type") or "")[:40]
    if "moe" in kind.lower() or kind in (
        "mixtral",
        "dbrx",
        "gpt_oss",
        "deepseek_v2",
        "deepseek_v3",
    ):
        return f"model_type {kind!r}"
    for key in _EXPERTS:
        count = config.get(key)
        if isinstance(count, int) and count > 1:
            return f"{key} {count}"
    return ""


def unknown_to_all(config: Mapping[str, Any]) -> str | None:
    """What in a config no engine here computes, or None.  Quantisation is `quantised`'s."""
    if experts := experts_of(config):
        return f"it is a mixture of experts ({experts})"
    for key in _SCALES:
        if not _neutral(config.get(key)):
            return f"{key} is {str(config[key])[:40]}"
    for key in _SWITCHES:
        if config.get(key):
            return f"{key} is {str(config[key])[:40]}"
    if config.get("hidden_act") not in (None, "silu"):
        return f"activation {str(config['hidden_act'])[:40]!r}"
    return None


def _neutral(value: object) -> bool:
    return not value or (value is not True and value == 1)


def quantised(config: Mapping[str, Any]) -> str | None:
    """That its weights are quantised, with the method, or None."""
    method = method_of(config)
    return (
        f"its weights are quantised ({method}), and their scales would be ignored"
        if method
        else None
    )


def windows_of(config: Mapping[str, Any]) -> str | None:
    """What says that not every layer attends to everything before, or None."""
    if config.get("use_sliding_window"):
        return "use_sliding_window is true"
    # Where there is a switch, it decides: Qwen's configs give a window that is not used.
    if "use_sliding_window" not in config and config.get("sliding_window"):
        return f"sliding_window is {str(config['sliding_window'])[:40]}"
    kinds = config.get("layer_types")
    others = [k for k in kinds if k != "full_attention"] if isinstance(kinds, list) else []
    return f"layers of type {str(others[0])[:40]!r}" if others else None


def rotary_of(config: Mapping[str, Any]) -> str | None:
    """What says that only a part of a head is rotated, or not all layers alike, or None."""
    places = [config, config.get("rope_parameters"), config.get("rope_scaling")]
    tables = [place for place in places if isinstance(place, Mapping)]
    for key in ("partial_rotary_factor", "rotary_pct", "rope_percent"):
        for table in tables:
            if table.get(key) not in (None, 1):
                return f"{key} is {str(table[key])[:40]}"
    for table in tables[1:]:
        for key, value in table.items():
            if isinstance(value, Mapping | list):
                return f"rotary positions with {str(key)[:40]!r}"
    return None
