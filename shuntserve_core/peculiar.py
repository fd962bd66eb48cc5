"""What a `config.json` names that changes the arithmetic, and that nothing here knows.

Whoever ignored it would answer, but not as the model does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from shuntserve_core.positions import KINDS, odd_rotary
from shuntserve_core.quantization import method_of

PLAIN = "push and serve a checkpoint whose weights are plain float16, bfloat16 or float32 instead"

DEFAULT_HEADS: Mapping[str, int] = MappingProxyType({"qwen3": 128})
"""`head_dim` by `model_type`, where it is not hidden / heads unless given."""

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_OF_EXPERTS = ("mixtral", "dbrx", "gpt_oss", "deepseek_v2", "deepseek_v3")
_KNOWN = frozenset(
    {
        # Read, by every engine or by the one that asks.
        "attention_bias",
        "mlp_bias",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "partial_rotary_factor",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        # Without effect on dense models of these families.
        "layer_norm_eps",
        "layer_norm_epsilon",
        "norm_eps",
        "norm_topk_prob",
        "num_experts_per_tok",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "scale_attn_weights",
        "initializer_scale",
    }
)
_ARITHMETIC = frozenset(
    {
        *("multiplier", "multipliers", "scale", "scales", "scaling", "scaled", "scaler", "mup"),
        *("softcap", "softcaps", "softcapping", "cap", "caps", "clip", "clamp", "limit"),
        *("window", "windows", "chunk", "chunked", "sparse", "sink", "sinks", "causal"),
        *("bidirectional", "rotary", "rope", "nope", "ntk", "yarn", "alibi", "positional"),
        *("bias", "biases", "norm", "norms", "layernorm", "rmsnorm", "temperature"),
        *("expert", "experts", "moe", "router", "parallel", "residual", "gated", "interleaved"),
        *("latent", "compress", "compression", "mamba", "ssm", "conv", "recurrent", "shared"),
        *("query", "qk", "qkv", "per"),
    }
)
"""Words of a key by which it says that it changes the arithmetic."""
_NOT_ARITHMETIC = re.compile(
    r"(dropout|initializ|(^|_)init_|loss|coef|_prob$|_token_id"
    r"|^pretraining_|(tensor|pipeline)_parallel|_size_feed_forward$)"
)
_ACTIVATIONS = (None, "silu", "swish")
_HARMLESS = (None, False, 0, 1, "", "none", "default", "rmsnorm", "RMSNorm", "rope", "rotary")


def experts_of(config: Mapping[str, Any]) -> str:
    """The key or type by which a config says mixture of experts; empty for a dense model."""
    kind = str(config.get("model_type") or "")[:40]
    if "moe" in kind.lower() or kind in _OF_EXPERTS:
        return f"model_type {kind!r}"
    for key in _EXPERTS:
        count = config.get(key)
        if isinstance(count, int) and count > 1:
            return f"{key} {count}"
    return ""


def unknown_to_all(config: Mapping[str, Any]) -> str | None:
    """What in a config no engine here computes, or None.

    Quantisation is `quantised`'s.  Of keys that nothing here has heard of, those are taken for
    arithmetic that say so by a word in their name.
    """
    if experts := experts_of(config):
        return f"it is a mixture of experts ({experts})"
    for key in ("hidden_act", "hidden_activation"):
        if config.get(key) not in _ACTIVATIONS:
            return f"activation {str(config[key])[:40]!r}"
    if reason := _other_head(config) or _no_place_for_biases(config):
        return reason
    if config.get("is_causal") is False:
        return "is_causal is false"
    for key, value in arithmetic_by_name(config).items():
        return f"{key[:60]} is {str(value)[:40]}"
    return odd_rotary(config, KINDS)


def arithmetic_by_name(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that nothing here has heard of and that say by their names that they change results."""
    return {
        key: value
        for key, value in config.items()
        if _says_arithmetic(key) and not _neutral(key, value)
    }


def _other_head(config: Mapping[str, Any]) -> str | None:
    """That it is not made to continue text: a classifier, an embedder, a draft model."""
    named = config.get("architectures")
    for name in named if isinstance(named, list) else []:
        if not re.fullmatch(r"(llama|mistral|qwen2|qwen3)forcausallm", str(name).lower()):
            return f"its architecture is {str(name)[:60]!r}"
    return None


def _no_place_for_biases(config: Mapping[str, Any]) -> str | None:
    """That a config wants biases which transformers' model of this family does not have."""
    family = config.get("model_type")
    lacking = {"mistral": ("attention_bias", "mlp_bias"), "qwen2": ("mlp_bias",)}
    for key in lacking.get(str(family), lacking["qwen2"] if family == "qwen3" else ()):
        if config.get(key):
            return f"{key} is true, and {str(family)!r} has no such biases"
    return None


def _says_arithmetic(key: str) -> bool:
    if key in _KNOWN or _NOT_ARITHMETIC.search(key.lower()):
        return False
    return not _ARITHMETIC.isdisjoint(re.split(r"[_.\-]", key.lower()))


def _neutral(key: str, value: object) -> bool:
    if key == "is_causal" or value in ([], {}):
        return True
    return value is not True and isinstance(value, str | int | float | None) and value in _HARMLESS


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
    if kind := other_layers(config):
        return kind
    # Where there is a switch, it decides: Qwen's configs give a window that is not used.
    if "use_sliding_window" not in config and config.get("sliding_window"):
        return f"sliding_window is {str(config['sliding_window'])[:40]}"
    return None


def other_layers(config: Mapping[str, Any]) -> str | None:
    """What says that some layers are not full attention, or None."""
    kinds = config.get("layer_types")
    if kinds is not None and not isinstance(kinds, list):
        return f"layer_types is {str(kinds)[:40]!r}"
    others = [kind for kind in kinds or [] if kind != "full_attention"]
    return f"layers of type {str(others[0])[:40]!r}" if others else None


def head_size(config: Mapping[str, Any], hidden: int, heads: int) -> Any:
    """`head_dim`, or what transformers takes where a config does not give it."""
    if config.get("head_dim") is not None:
        return config["head_dim"]
    return DEFAULT_HEADS.get(str(config.get("model_type")), hidden // heads)
