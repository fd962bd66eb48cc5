"""Small models for tests, and a TRAW writer that shares nothing with the one under test."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CODES = {"float16": 1, "bfloat16": 2, "float32": 3, "float64": 4}


def traw(dtype: str, shape: tuple[int, ...], data: bytes) -> bytes:
    """A TRAW v1 file, written from the format's description."""
    parts = [b"TRAW", struct.pack("<I", 1), struct.pack("<I", len(shape))]
    parts += [struct.pack("<Q", size) for size in shape]
    return b"".join([*parts, struct.pack("<I", CODES[dtype]), struct.pack("<Q", len(data)), data])


def write_llama(
    directory: Path,
    *,
    layers: int = 3,
    hidden: int = 40,
    heads: int = 8,
    kv_heads: int = 2,
    head_dim: int = 6,
    intermediate: int = 88,
    vocab: int = 1000,
    seed: int = 0,
) -> Path:
    """A Llama checkpoint of random float16 numbers, with shapes that divide by little."""
    random = np.random.default_rng(seed)
    shapes = {
        "self_attn.q_proj": (heads * head_dim, hidden),
        "self_attn.k_proj": (kv_heads * head_dim, hidden),
        "self_attn.v_proj": (kv_heads * head_dim, hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    tensors = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        **{
            f"model.layers.{layer}.{kind}.weight": shape
            for layer in range(layers)
            for kind, shape in shapes.items()
        },
    }
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(
        {name: random.standard_normal(shape).astype(np.float16) for name, shape in tensors.items()},
        directory / "model.safetensors",
    )
    return directory
