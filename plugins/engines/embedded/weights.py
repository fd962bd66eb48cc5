"""The weights of one rank's part of a stage, where the tensor store has put them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shuntserve_plugins.engines.embedded.arithmetic import Scratch
from shuntserve_plugins.engines.embedded.geometry import Geometry

VOCAB_TILE = 1024
"""Rows of the output projection in one product, counted from the start of the whole vocabulary."""

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


class LayerWeights:
    """One layer, cut into the rank's logical shards."""

    def __init__(
        self, tensors: Mapping[str, Tensor], layer: int, shards: int, scratch: Scratch
    ) -> None:
        self._prefix, self._tensors = f"model.layers.{layer}.", tensors
        self._scratch = scratch
        attention, mlp = "self_attn.", "mlp."
        self._qkv = [self._cut(f"{attention}{p}_proj.weight", shards) for p in "qkv"]
        self._gate_up = [self._cut(f"{mlp}{p}_proj.weight", shards) for p in ("gate", "up")]
        self._output = self._cut(f"{attention}o_proj.weight", shards, axis=1)
        self._down = self._cut(f"{mlp}down_proj.weight", shards, axis=1)
        self.input_norm = self._vector("input_layernorm.weight")
        self.mlp_norm = self._vector("post_attention_layernorm.weight")
        self.query_norm = self._optional("self_attn.q_norm.weight")
        self.key_norm = self._optional("self_attn.k_norm.weight")
        self.qkv_bias = self._bias(shards)

    def qkv(self, shard: int) -> Tensor:
        """Query, key and value projections of a shard under one another."""
        return self._scratch.rows([part[shard] for part in self._qkv])

    def gate_up(self, shard: int) -> Tensor:
        """Gate and up projections of a shard under one another."""
        return self._scratch.rows([part[shard] for part in self._gate_up])

    def output(self, shard: int) -> Tensor:
        """A shard of the attention's output projection: the columns of its heads."""
        return self._scratch.rows([self._output[shard]])

    def down(self, shard: int) -> Tensor:
        """A shard of the MLP's down projection: its columns."""
        return self._scratch.rows([self._down[shard]])

    def _cut(self, name: str, shards: int, axis: int = 0) -> tuple[Tensor, ...]:
        return self._tensors[self._prefix + name].chunk(shards, dim=axis)

    def _vector(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name].float()

    def _optional(self, name: str) -> Tensor | None:
        return self._vector(name) if self._prefix + name in self._tensors else None

    def _bias(self, shards: int) -> Tensor | None:
        """Biases of query, key and value: (shards, 1, outputs), or None."""
        if self._prefix + "self_attn.q_proj.bias" not in self._tensors:
            return None
        parts = [self._vector(f"self_attn.{p}_proj.bias").view(shards, 1, -1) for p in "qkv"]
        return torch.cat(parts, dim=-1)


class Vocabulary:
    """A rank's rows of the embedding table or of the output projection."""

    def __init__(self, table: Tensor, rank: int, scratch: Scratch) -> None:
        self._table, self._scratch = table, scratch
        self.rows = table.shape[0]
        self.start = rank * self.rows

    def look_up(self, tokens: Tensor) -> Tensor:
        """Embeddings of tokens in float32; those of other ranks' tokens are meaningless."""
        return self._table[(tokens - self.start).clamp(0, self.rows - 1)].float()

    def tiles(self) -> list[range]:
        """The vocabulary tiles that overlap this rank's rows."""
        first = self.start // VOCAB_TILE
        last = -(-(self.start + self.rows) // VOCAB_TILE)
        return [range(t * VOCAB_TILE, (t + 1) * VOCAB_TILE) for t in range(first, last)]

    def tile(self, rows: range) -> tuple[Tensor, slice, slice]:
        """One tile as a matrix: zeros where other ranks have rows.

        Also which of its rows are ours, and where they belong among our rows.
        """
        low = max(rows.start, self.start)
        high = min(rows.stop, self.start + self.rows)
        before = self._table[:0].new_zeros(low - rows.start, self._table.shape[1])
        ours = slice(low - self.start, high - self.start)
        matrix = self._scratch.rows([before, self._table[ours]], VOCAB_TILE)
        return matrix, slice(low - rows.start, high - rows.start), ours


def embedding_table(tensors: Mapping[str, Tensor]) -> Tensor:
    """The table of a first stage."""
    return tensors[_EMBEDDING]


def head_table(tensors: Mapping[str, Tensor]) -> Tensor:
    """The output projection of a last stage; with tied embeddings it may be the table itself."""
    return tensors[_HEAD] if _HEAD in tensors else tensors[_EMBEDDING]


def scratch_elements(geometry: Geometry) -> int:
    """The largest matrix that is ever widened at once."""
    heads = geometry.heads + 2 * geometry.kv_heads
    widest = max(heads * geometry.head_dim, 2 * geometry.intermediate) // geometry.shards
    return geometry.hidden * max(widest, VOCAB_TILE)
