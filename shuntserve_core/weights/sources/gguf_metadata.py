"""What a GGUF file's metadata says of the arithmetic: known and kept, or refused by name.

The keys are llama.cpp's (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), each below the
architecture's name.  A key that nobody here knows may well change what a model computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shuntserve_core.errors import UserError

READ = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scale_linear",
    }
)
"""What a config is made of."""
_HARMLESS = frozenset(
    {"vocab_size", "rope.scaling.original_context_length", "rope.scaling.finetuned"}
)
"""Of sizes that tensors have, and of contexts: without effect where yarn is refused."""
_OTHERWISE: Mapping[str, tuple[Any, ...]] = {
    "tensor_data_layout": ("Meta AI original pth",),
    "logit_scale": (1.0,),
    "embedding_scale": (1.0,),
    "residual_scale": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
}
"""Values with which other keys change nothing, besides those that say "none"."""
_CAUSAL = "attention.causal"
_NONE = (None, False, 0, "", "none")
_SAFETENSORS = "push the safetensors checkpoint instead"


def refuse_unknown(family: str, metadata: Mapping[str, Any], where: str) -> None:
    """Raise `UserError` for a file that is no whole model, and for keys that are not understood."""
    kind = metadata.get("general.type", "model")
    if kind != "model" or any(key.startswith("adapter.") for key in metadata):
        raise UserError(
            f"it holds a LoRA adapter or the like (general.type {str(kind)[:40]!r}), not a model",
            where=where,
            remedy="merge it into its base model (llama-export-lora) and push that",
        )
    parts = metadata.get("split.count")
    if parts not in (None, 0, 1):
        raise UserError(
            f"it is one of {str(parts)[:40]} parts of a model",
            where=where,
            remedy="put them together (llama-gguf-split --merge) and push the whole",
        )
    for key, value in metadata.items():
        name = key.removeprefix(f"{family}.")
        if name != key and name not in READ | _HARMLESS and not _means_nothing(name, value):
            raise UserError(
                f"{key} is {str(value)[:40]}, which no engine here knows",
                where=where,
                remedy=_SAFETENSORS,
            )


def _means_nothing(name: str, value: Any) -> bool:
    if name == _CAUSAL:
        return value is True
    return not isinstance(value, list) and (value in _NONE or value in _OTHERWISE.get(name, ()))


def head_of(family: str, metadata: Mapping[str, Any], head: int, where: str) -> int:
    """`head`, the elements of one head, once everything that has to agree with it does."""
    for name in ("attention.value_length", "rope.dimension_count"):
        found = metadata.get(f"{family}.{name}", head)
        if found != head:
            raise UserError(
                f"{family}.{name} is {str(found)[:40]}, of heads of {head} elements",
                where=where,
                remedy=_SAFETENSORS,
            )
    return head


def rotary_scaling(family: str, metadata: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """`rope_scaling` of a config, or None.  As in llama.cpp, a factor without a type is linear."""
    kind = metadata.get(f"{family}.rope.scaling.type", "linear")
    factor = metadata.get(f"{family}.rope.scaling.factor") or metadata.get(
        f"{family}.rope.scale_linear", 1.0
    )
    if kind not in ("none", "linear"):
        raise UserError(
            f"{family}.rope.scaling.type is {str(kind)[:40]!r}, which is not read from GGUF",
            where=where,
            remedy=_SAFETENSORS,
        )
    number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not number or not 0 < factor < math.inf:
        raise UserError(
            f"{family}.rope.scaling.factor is {str(factor)[:40]}",
            where=where,
            remedy=_SAFETENSORS,
        )
    if kind == "none" or factor == 1:
        return None
    return {"rope_type": "linear", "factor": round(float(factor), 6)}
