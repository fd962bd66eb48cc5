"""Small random models of every family, made by transformers, cut and stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.core.tensorstore.processes import push
from tests.plugins.engines.embedded.processes import Model

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 1100,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama3-rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "qwen2": ("qwen2", {"head_dim": None}),
    "qwen3": ("qwen3", {"num_attention_heads": 4, "head_dim": 32}),
}


def build(kind: str, directory: Path, dtype: torch.dtype) -> Model:
    """Make, cut for degrees 1, 2 and 4, and store a model of this kind."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family, changes = KINDS[kind]
    values = {k: v for k, v in {**SIZES, **changes}.items() if v is not None}
    if kind == "qwen2":
        values["hidden_size"] = 128  # it has no head_dim of its own
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.to(dtype).save_pretrained(directory / kind)
    name = push(directory / kind, directory / "store", [1, 2, 4])
    return Model(directory / kind, directory / "store", name)


def reference(model: Model) -> Any:
    """The same weights in transformers, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model.directory, dtype=torch.float32).eval()


@torch.inference_mode()
def greedy_of(reference: Any, prompt: tuple[int, ...], output: list[int]) -> list[int]:
    """What transformers would have chosen at each position of this output.

    If it equals the output, then so does a greedy generation, token by token.
    """
    logits = reference(torch.tensor([[*prompt, *output]])).logits[0]
    choices: list[int] = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
    return choices
