"""Tiny checkpoints of every form that people push, right and wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def make(directory: Path, family: str = "llama", **changes: Any) -> Path:
    """A random model as transformers saves it, in float16."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {k: v for k, v in {**SIZES, **changes}.items() if v is not None}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values))
    model.to(torch.float16).save_pretrained(directory)
    return directory


def configure(directory: Path, **changes: Any) -> Path:
    """Change the config; None takes a key out."""
    file = directory / "config.json"
    config = {**json.loads(file.read_bytes()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return directory


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def save(directory: Path, tensors: dict[str, torch.Tensor]) -> Path:
    contiguous = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def to_fp8(directory: Path, scale: str = "weight_scale_inv") -> Path:
    """Store the projections as 8-bit floats with a scale each; the config is left as it is."""
    tensors = tensors_of(directory)
    for name, tensor in list(tensors.items()):
        if any(f"{projection}.weight" in name for projection in PROJECTIONS):
            factor = tensor.float().abs().max() / 448
            tensors[name] = (tensor.float() / factor).to(torch.float8_e4m3fn)
            tensors[name.replace(".weight", f".{scale}")] = factor.reshape(1, 1)
    return save(directory, tensors)
