"""A GGUF file, dequantised.

Weights come out as float16 (norms and biases too): Q4 and Q8 blocks are scaled by float16 numbers,
so that bfloat16 would lose bits that float16 keeps, and float32 would be twice the bytes.
Names and order are those of a Hugging Face checkpoint again; llama.cpp's permutation of the rows
of q and k, which it applies to the Llama family only, is undone.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import whole_number
from shuntserve_core.weights.checksum import checksum
from shuntserve_core.weights.cutting import EMBEDDING, LM_HEAD
from shuntserve_core.weights.manifest import Source
from shuntserve_core.weights.sources import SourceTensor
from shuntserve_core.weights.sources.gguf_layout import GgufTensor, read_layout
from shuntserve_core.weights.sources.gguf_metadata import (
    head_of,
    refuse_unknown,
    rotary_scaling,
)
from shuntserve_core.weights.sources.gguf_tokenizer import tokenizer_files
from shuntserve_core.weights.traw import DTYPES, Header

ROWS_BYTES = 64 << 20
"""Dequantised at a time, in bytes of float32."""

FAMILIES = ("llama", "qwen2", "qwen3")

_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {
    "token_embd.weight": EMBEDDING,
    "output_norm.weight": "model.norm.weight",
    "output.weight": LM_HEAD,
}


class GgufFile:
    """A model in one GGUF file, with its configuration and tokenizer rebuilt from the metadata."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise UserError(
                "reading GGUF needs the package gguf",
                where=str(path),
                remedy="pip install 'shuntserve[gguf]'",
            ) from error
        self._path = path
        self._where = str(path)
        self._dequantize = gguf.quants.dequantize
        try:
            self._layout = read_layout(path)
        except (ValueError, OSError) as error:
            raise UserError(
                f"not a GGUF file: {error}", where=self._where, remedy="download it again"
            ) from error
        self.family = str(self.value("general.architecture"))[:40]
        if self.family not in FAMILIES:
            raise UserError(
                f"GGUF models of architecture {self.family!r} cannot be read",
                where=self._where,
                remedy=f"known are {', '.join(FAMILIES)}",
            )
        refuse_unknown(self.family, self._layout.metadata, self._where)

    def value(self, key: str, default: Any = None) -> Any:
        """One value of the metadata, or the default."""
        return self._layout.metadata.get(key, default)

    def _whole(self, key: str, default: int | None = None) -> int:
        """A positive whole number of the architecture's own metadata.  Raises `UserError`."""
        name = f"{self.family}.{key}"
        try:
            return whole_number(self.value(name, default), 1, 1 << 32)
        except ValueError as error:
            raise UserError(
                str(error),
                where=f"{self._where}: {name}",
                remedy="convert the original checkpoint again",
            ) from error

    def _positive(self, key: str, default: float | None = None) -> float:
        """Likewise any positive number."""
        name = f"{self.family}.{key}"
        found = self.value(name, default)
        if not isinstance(found, int | float) or not 0 < found < math.inf:
            raise UserError(
                f"{name} is no positive number: {str(found)[:40]}",
                where=self._where,
                remedy="convert the original checkpoint again",
            )
        return found

    @cached_property
    def source(self) -> Source:
        """The file's name and a fingerprint of its metadata and size."""
        start = self._layout.data[: self._layout.data_offset].tobytes()
        size = str(self._path.stat().st_size).encode()
        return Source("gguf", self._path.name, checksum([start, size]))

    @cached_property
    def files(self) -> dict[str, bytes]:
        """`config.json`, and the tokenizer where it is of a kind that we can rebuild."""
        config = json.dumps(self._config(), indent=2).encode()
        try:
            return {"config.json": config, **tokenizer_files(self)}
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(
                f"its tokenizer makes no sense: {error}",
                where=self._where,
                remedy="convert the original checkpoint again",
            ) from error

    def _config(self) -> dict[str, Any]:
        heads, hidden = self._whole("attention.head_count"), self._whole("embedding_length")
        names, metadata, where = self._tensors_by_name, self._layout.metadata, self._where
        head = self._whole("attention.key_length", hidden // heads)
        scaling = rotary_scaling(self.family, metadata, where)
        config = {
            "architectures": [f"{self.family.capitalize()}ForCausalLM"],
            "model_type": self.family,
            "hidden_size": hidden,
            "num_hidden_layers": self._whole("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._whole("attention.head_count_kv", heads),
            "head_dim": head_of(self.family, metadata, head, where),
            "intermediate_size": self._whole("feed_forward_length"),
            "vocab_size": names[EMBEDDING].shape[0] if EMBEDDING in names else 0,
            "max_position_embeddings": self._whole("context_length"),
            "rms_norm_eps": round(self._positive("attention.layer_norm_rms_epsilon"), 12),
            "rope_theta": self._positive("rope.freq_base", 10000.0),
            **({"rope_scaling": scaling} if scaling else {}),
            "hidden_act": "silu",
            "tie_word_embeddings": LM_HEAD not in names,
            "torch_dtype": "float16",
            "bos_token_id": self.value("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.value("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self.value("tokenizer.ggml.padding_token_id"),
        }
        if self.family == "llama":
            config["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in names
            config["mlp_bias"] = "model.layers.0.mlp.gate_proj.bias" in names
        return config

    @cached_property
    def _tensors_by_name(self) -> dict[str, GgufTensor]:
        return {self._name(name): tensor for name, tensor in self._layout.tensors.items()}

    def _name(self, name: str) -> str:
        match = _BLOCK.fullmatch(name)
        if match and match.group(2) in _IN_BLOCK:
            layer, kind, suffix = match.groups()
            return f"model.layers.{layer}.{_IN_BLOCK[kind]}.{suffix}"
        if name in _OUTSIDE:
            return _OUTSIDE[name]
        raise UserError(
            f"tensor {name} has no counterpart in a {self.family} checkpoint",
            where=self._where,
            remedy="push the safetensors checkpoint instead",
        )

    @property
    def tensors(self) -> list[SourceTensor]:
        """Every tensor as float16, under its Hugging Face name."""
        return [
            SourceTensor(name, Header(DTYPES["float16"], tensor.shape))
            for name, tensor in self._tensors_by_name.items()
            if name not in self.unread
        ]

    @cached_property
    def unread(self) -> Mapping[str, str]:
        """Tensors of types that the package gguf cannot dequantise."""
        named = self._tensors_by_name
        unknown = {t.kind for t in named.values() if not self._is_known(t)}
        return {name: t.kind.name for name, t in named.items() if t.kind in unknown}

    def _is_known(self, tensor: GgufTensor) -> bool:
        block = self._layout.rows(tensor)[:1]
        try:
            with np.errstate(all="ignore"):
                self._dequantize(block, tensor.kind)
        except NotImplementedError:
            return False
        return True

    @property
    def beside(self) -> object:
        """None: a GGUF file is all there is."""
        return None

    def read(self, name: str) -> NDArray[np.uint8]:
        """A tensor dequantised, a bounded number of rows at a time."""
        tensor = self._tensors_by_name[name]
        shape, rows = tensor.shape, self._layout.rows(tensor)
        order = self._row_order(name, shape[0])
        whole: NDArray[Any] = np.empty(shape, np.float16).reshape(len(rows), -1)
        step = max(1, ROWS_BYTES // (4 * whole.shape[1]))
        for start in range(0, len(rows), step):
            chosen = slice(start, start + step)
            part = rows[chosen] if order is None or len(shape) == 1 else rows[order[chosen]]
            where = f"{self._where}: {name}"
            try:
                with np.errstate(all="ignore"):  # what is not finite is refused below
                    numbers = self._dequantize(part, tensor.kind)
            except NotImplementedError as error:
                raise UserError(
                    f"weights of type {tensor.kind.name}",
                    where=where,
                    remedy="convert it to F16, BF16, F32 or Q8_0",
                ) from error
            whole[chosen] = _to_float16(numbers, where)
        if order is not None and len(shape) == 1:
            whole = whole[:, order]
        return whole.reshape(shape[0], -1).view(np.uint8)

    def _row_order(self, name: str, rows: int) -> NDArray[np.int64] | None:
        """Rows of the file in the order of the checkpoint; None where it is the same."""
        if self.family != "llama":
            return None
        if ".q_proj." in name:
            heads = self._whole("attention.head_count")
        elif ".k_proj." in name:
            heads = self._whole("attention.head_count_kv", self._whole("attention.head_count"))
        else:
            return None
        if rows % (2 * heads):
            raise UserError(
                f"{rows} rows for {heads} heads",
                where=f"{self._where}: {name}",
                remedy="convert the original checkpoint again",
            )
        pairs = np.arange(rows).reshape(heads, rows // heads // 2, 2)
        return pairs.swapaxes(1, 2).reshape(-1)


def _to_float16(numbers: NDArray[Any], where: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = numbers.astype(np.float16)
    if not np.isfinite(half).all():
        raise UserError(
            "a weight is too large for float16",
            where=where,
            remedy="convert the original checkpoint instead",
        )
    return half
