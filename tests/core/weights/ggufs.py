"""GGUF files of checkpoints that transformers saved, as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from tests.core.weights.checkpoints import save, tensors_of

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def permuted(weights: NDArray[Any], heads: int) -> NDArray[Any]:
    """What llama.cpp does to q and k: the two halves of each head's rows are interleaved."""
    halves = weights.reshape(heads, 2, len(weights) // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def write_gguf_of(directory: Path, kind: str, metadata: Mapping[str, Any]) -> Path:
    """`model.gguf` in the folder of a checkpoint, its matrices of one type; more metadata last.

    The checkpoint is left with the numbers that the file stands for, as float16.
    """
    config = json.loads((directory / "config.json").read_bytes())
    path = directory / "model.gguf"
    writer = gguf.GGUFWriter(path, config["model_type"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(32)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("llama")
    usual = {"attention.value_length": 32, "rope.dimension_count": 32}
    for key, value in {**usual, **metadata}.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{config['model_type']}.{key}", value)
    stands_for = {}
    for name, tensor in tensors_of(directory).items():
        numbers = tensor.float().numpy()
        numbers, stored = _stored(numbers, kind)
        stands_for[name] = torch.from_numpy(numbers).to(torch.float16)
        _add(writer, name, config, stored, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save(directory, stands_for)
    return path


def _type(kind: str) -> Any:
    return gguf.GGMLQuantizationType[kind]


def _stored(numbers: NDArray[Any], kind: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the file stands for, and what is quantised: vectors stay as they are."""
    if numbers.ndim == 1 or kind == "F32":
        return numbers, numbers
    whole = gguf.quants.dequantize(gguf.quants.quantize(numbers, _type(kind)), _type(kind))
    return whole, numbers


def _add(
    writer: Any, name: str, config: Mapping[str, Any], numbers: NDArray[Any], kind: str
) -> None:
    llama = config["model_type"] == "llama"
    if llama and ".q_proj." in name:
        numbers = permuted(numbers, config["num_attention_heads"])
    if llama and ".k_proj." in name:
        numbers = permuted(numbers, config["num_key_value_heads"])
    numbers = np.ascontiguousarray(numbers)
    theirs = _OUTSIDE.get(name) or _in_block(name)
    if numbers.ndim == 1 or kind == "F32":
        writer.add_tensor(theirs, numbers)
    else:
        packed = gguf.quants.quantize(numbers, _type(kind))
        writer.add_tensor(theirs, packed, raw_dtype=_type(kind))


def _in_block(name: str) -> str:
    _, _, layer, rest = name.split(".", 3)
    module, _, suffix = rest.rpartition(".")
    return f"blk.{layer}.{_NAMES[module]}.{suffix}"
