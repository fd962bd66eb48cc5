"""The weights of one rank's part of a stage, where the tensor store has put them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from shuntserve_core.errors import UserError
from shuntserve_plugins.engines.embedded.arithmetic import Scratch
from shuntserve_plugins.engines.embedded.geometry import Geometry

VOCAB_TILE = 1024
"""Rows of the output projection in one product, counted from the start of the whole vocabulary."""

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_OUTSIDE = (_EMBEDDING, _HEAD, "model.norm.weight")
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_LAYER = (
    *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
    *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)


_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(tensors: Mapping[str, Tensor], geometry: Geometry, where: str) -> None:
    """Raise `UserError` for tensors that this engine would not use, or would take for others.

    A store may have been filled by who knows what: scales that are not applied, biases that are
    not added and numbers of another kind would all serve nonsense.
    """
    known = set(_LAYER)
    known |= {f"self_attn.{part}_norm.weight" for part in "qk"} if geometry.query_norm else set()
    known |= {f"self_attn.{part}_proj.bias" for part in "qkv"} if geometry.biases else set()
    there: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        layer = _IN_LAYER.fullmatch(name)
        if layer:
            there.setdefault(layer.group(1), set()).add(layer.group(2))
        if tensor.dtype not in _PLAIN or (name not in _OUTSIDE and not layer):
            reason = f"the stored {name} ({tensor.dtype}) is nothing that it computes with"
            raise _not_stored_for(reason, where)
    for layer_number, names in there.items():
        for name in sorted(names ^ known):
            state = "is" if name in names else "is not"
            reason = f"model.layers.{layer_number}.{name} {state} in the store"
            raise _not_stored_for(f"{reason}, against config.json", where)


def _not_stored_for(reason: str, where: str) -> UserError:
    return UserError(
        f"the embedded engine cannot use these weights: {reason}",
        where=where,
        remedy="push the checkpoint again with --replace: what cannot be served is refused there",
    )


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
