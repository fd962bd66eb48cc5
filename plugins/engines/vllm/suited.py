"""Which models vLLM computes as transformers does, with weights out of the tensor store.

What is refused here was seen in the sources of vLLM 0.32 and 0.33 to be computed otherwise, or to
end the engine when it starts; docs/reference/checkpoints.md has what was compared.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from shuntserve_core.errors import UserError
from shuntserve_core.peculiar import PLAIN, other_layers, unknown_to_all, windows_of
from shuntserve_core.positions import odd_rotary, rotary_kind, rotary_table
from shuntserve_core.quantization import method_of
from shuntserve_core.types.model import MOST_POSITIONS, ModelSpec

FAMILIES = ("llama", "qwen2", "qwen3")
ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
    }
)
"""What vLLM calls its code for each `model_type`, whatever a config says."""
ROTARY = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions.  `dynamic` and `longrope` choose by the longest context that is
served, not by the length of each sequence."""
CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of heads that attention on a CPU has kernels for."""


def refuse_model(model: ModelSpec, config: Mapping[str, Any]) -> None:
    """Raise `UserError` for a model that does not run here, wherever it is placed."""
    where = f"vLLM engine, {model.name}"
    method = method_of(config) or model.quantization
    if method:
        raise UserError(
            f"its weights are quantised ({method}): vLLM's kernels for them repack weights and "
            "scales, which memory of the tensor store cannot be lent for",
            where=where,
            remedy=PLAIN,
        )
    kind = config.get("model_type", model.family)
    if kind not in ARCHITECTURES:
        raise UserError(
            f"models of type {str(kind)[:40]!r} are not served from TRAW shards",
            where=where,
            remedy=f"types: {', '.join(ARCHITECTURES)}",
        )
    if reason := _refused(config) or _odd_heads(model, str(kind)):
        raise UserError(reason, where=where, remedy="serve another model")


def _refused(config: Mapping[str, Any]) -> str | None:
    if not config:
        return None
    if config.get("model_type") == "qwen3" and config.get("attention_bias"):
        return "attention_bias is true, and its Qwen3 has no bias in the output projection"
    return (
        unknown_to_all(config) or odd_rotary(config, ROTARY) or _beyond(config) or _windows(config)
    )


def _beyond(config: Mapping[str, Any]) -> str | None:
    """That contexts are longer than the positions that yarn makes of the original ones."""
    if rotary_kind(config) != "yarn":
        return None
    table = rotary_table(config)
    positions = config.get("max_position_embeddings")
    most = table["original_max_position_embeddings"] * table["factor"]
    longest = positions if isinstance(positions, int) else MOST_POSITIONS
    return (
        f"max_position_embeddings {longest} are more than yarn's factor makes, {most:g}"
        if longest > most
        else None
    )


def _windows(config: Mapping[str, Any]) -> str | None:
    """Of these families transformers has windows in all layers of Mistral, and so has vLLM.

    In Qwen2 and Qwen3 it has them in some layers, and vLLM in all or none.
    """
    window = config.get("sliding_window")
    plain = window is None or (isinstance(window, int) and window > 0)
    if config.get("model_type") == "mistral" and plain and "use_sliding_window" not in config:
        return other_layers(config)
    return windows_of(config)


def _odd_heads(model: ModelSpec, kind: str) -> str | None:
    if kind == "qwen2" and model.head_dim * model.heads != model.hidden:
        return (
            f"head_dim is {model.head_dim}, and vLLM's Qwen2 takes hidden_size / heads: "
            f"{model.hidden} / {model.heads}"
        )
    if model.head_dim not in CPU_HEADS and _is_cpu_build():
        sizes = ", ".join(map(str, CPU_HEADS))
        return f"heads of {model.head_dim} elements: on a CPU, vLLM has kernels for {sizes}"
    return None


def _is_cpu_build() -> bool:
    try:
        return importlib.metadata.version("vllm").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
