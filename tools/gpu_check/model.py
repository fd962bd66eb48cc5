"""Random Llamas, made on the spot from a seed, and their cut form in a weight store."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from attrs import frozen

from shuntserve_core.registry import Registry
from shuntserve_core.testing.models import write_tokenizer
from shuntserve_core.weights import open_store
from shuntserve_core.weights.planning import plan_push
from shuntserve_core.weights.pushing import push_model
from shuntserve_core.weights.sources import open_source

_SAFETENSORS = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


@frozen
class Size:
    """Of a Llama."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int = 4096

    @property
    def config(self) -> dict[str, object]:
        """Its `config.json`."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 2,
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every tensor, by its name in a checkpoint."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab, self.hidden)
        }
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            shapes |= {
                f"{prefix}self_attn.q_proj.weight": (q, self.hidden),
                f"{prefix}self_attn.k_proj.weight": (kv, self.hidden),
                f"{prefix}self_attn.v_proj.weight": (kv, self.hidden),
                f"{prefix}self_attn.o_proj.weight": (self.hidden, q),
                f"{prefix}mlp.gate_proj.weight": (self.intermediate, self.hidden),
                f"{prefix}mlp.up_proj.weight": (self.intermediate, self.hidden),
                f"{prefix}mlp.down_proj.weight": (self.hidden, self.intermediate),
                f"{prefix}input_layernorm.weight": (self.hidden,),
                f"{prefix}post_attention_layernorm.weight": (self.hidden,),
            }
        shapes["model.norm.weight"] = (self.hidden,)
        shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return shapes


TOKENS = 384
"""Of the tokenizer: as many as the few lines that it is trained on give."""
TINY = Size(4, 64, 8, 4, 16, 96, TOKENS)
"""For functions, not for figures."""
SMALL = Size(4, 256, 8, 4, 32, 512, 1024)
"""What kernels with least widths take too."""
BILLION = Size(16, 2048, 32, 8, 64, 8192, 32768)
"""The layers of Llama-3.2-1B, with a smaller vocabulary: 1.1 billion parameters."""


@frozen
class Model:
    """A checkpoint, and its cut form."""

    directory: Path
    weights: Path
    name: str
    """In the weight store."""
    size: Size


def make(
    directory: Path, size: Size, dtype: torch.dtype, *, spread: float = 0.3, device: str = "cpu"
) -> Model:
    """Write a random Llama with a tokenizer, cut for one rank.

    `spread` is the standard deviation of its matrices, in units of one over the root of the width
    that they sum over times 5: large enough that what it says varies.
    """
    folder = directory / "random-llama"
    write_tokenizer(folder, vocab_size=TOKENS)
    (folder / "config.json").write_text(json.dumps({**size.config, "dtype": _name(dtype)}))
    _write_tensors(folder / "model.safetensors", size, dtype, spread, device)
    weights = directory / "weights"
    weights.mkdir()
    store = open_store(str(weights), Registry())
    source, name = open_source(str(folder))
    push_model(store, source, plan_push(source, name, [1]))
    return Model(folder, weights, str(name), size)


def _write_tensors(path: Path, size: Size, dtype: torch.dtype, spread: float, device: str) -> None:
    """One file in the safetensors format: length of the header, header, tensors."""
    width = torch.empty((), dtype=dtype).element_size()
    header: dict[str, object] = {}
    offset = 0
    for name, shape in size.shapes.items():
        end = offset + width * _count(shape)
        header[name] = {
            "dtype": _SAFETENSORS[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator(device).manual_seed(1)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in size.shapes.values():
            if len(shape) == 1:
                tensor = torch.ones(shape, dtype=dtype)
            else:
                scale = 5 * spread / shape[1] ** 0.5
                tensor = torch.randn(shape, generator=generator, device=device) * scale
            file.write(tensor.to(dtype).cpu().view(torch.uint8).numpy().data)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
