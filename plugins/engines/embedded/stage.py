"""One rank's part of a stage: from tokens or hidden states to hidden states or logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from attrs import frozen
from torch import Tensor
from torch.nn.functional import silu

from shuntserve_plugins.engines.embedded.arithmetic import (
    Rotation,
    Scratch,
    norm,
    ordered_sum,
    padded,
    product,
)
from shuntserve_plugins.engines.embedded.attention import Attention, KvCache
from shuntserve_plugins.engines.embedded.geometry import Geometry
from shuntserve_plugins.engines.embedded.group import Group
from shuntserve_plugins.engines.embedded.weights import (
    LayerWeights,
    Vocabulary,
    embedding_table,
    head_table,
    scratch_elements,
)


@frozen
class Batch:
    """The rows of a step: real tokens first, then padding to whole tiles."""

    tokens: Tensor
    positions: Tensor
    """Padded; padding is at position 0."""
    attention: Attention
    sampled: Tensor
    """Rows whose logits are wanted: those to score, and those whose next token is wanted."""

    @property
    def rows(self) -> int:
        """Rows with padding."""
        return int(self.positions.shape[0])


class Stage:
    """Layers `start` to `stop` of the model on rank `group.rank` of `group.size`.

    It computes where its weights are.
    """

    def __init__(
        self,
        geometry: Geometry,
        tensors: Mapping[str, Tensor],
        layers: range,
        group: Group,
        max_length: int,
    ) -> None:
        self.geometry, self.layers, self._group = geometry, layers, group
        self._shards = geometry.shards // group.size
        self.device = next(iter(tensors.values())).device
        self.scratch = scratch = Scratch(scratch_elements(geometry), self.device)
        self._layers = [LayerWeights(tensors, layer, self._shards, scratch) for layer in layers]
        self._rotation = Rotation(geometry.rope, geometry.head_dim, max_length, self.device)
        self.first, self.last = layers.start == 0, layers.stop == geometry.layers
        if self.first:
            self._embedding = Vocabulary(embedding_table(tensors), group.rank, scratch)
        if self.last:
            self._head = Vocabulary(head_table(tensors), group.rank, scratch)
            self._final_norm = tensors["model.norm.weight"].float()

    @property
    def kv_heads(self) -> int:
        """KV heads of this rank."""
        return self.geometry.kv_heads // self._group.size

    def embed(self, batch: Batch) -> Tensor:
        """Hidden states (rows, hidden) of tokens: a first stage's input."""
        tokens = torch.zeros(batch.rows, dtype=torch.int64, device=self.device)
        tokens[: batch.tokens.shape[0]] = batch.tokens
        parts = self._group.gather(self._embedding.look_up(tokens))
        return parts[tokens // self._embedding.rows, torch.arange(batch.rows, device=self.device)]

    def forward(self, hidden: Tensor, batch: Batch, cache: KvCache) -> Tensor:
        """Hidden states behind the last of these layers; keys and values go to the cache."""
        for index, layer in enumerate(self._layers):
            hidden = hidden + self._attend(index, layer, hidden, batch, cache)
            hidden = hidden + self._mlp(layer, hidden)
        return hidden

    def logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Logits (sampled rows, vocabulary) of a last stage."""
        count = batch.sampled.shape[0]
        rows = hidden.new_zeros(padded(count), self.geometry.hidden)
        rows[:count] = norm(hidden[batch.sampled], self._final_norm, self.geometry.epsilon)
        ours = hidden.new_empty(rows.shape[0], self._head.rows)
        for tile in self._head.tiles():
            matrix, of_tile, of_ours = self._head.tile(tile)
            out = hidden.new_empty(rows.shape[0], len(tile))
            product(rows, matrix, out)
            ours[:, of_ours] = out[:, of_tile]
        parts = self._group.gather(ours[:count])
        whole = parts.transpose(0, 1).reshape(count, -1)
        return whole[:, : self.geometry.vocab]

    def _attend(
        self, index: int, layer: LayerWeights, hidden: Tensor, batch: Batch, cache: KvCache
    ) -> Tensor:
        g = self.geometry
        heads, kv_heads = g.heads // g.shards, g.kv_heads // g.shards
        rows = norm(hidden, layer.input_norm, g.epsilon)
        qkv = self._apply(rows, layer.qkv, (heads + 2 * kv_heads) * g.head_dim)
        if layer.qkv_bias is not None:
            qkv = qkv + layer.qkv_bias
        split = qkv.view(self._shards, batch.rows, -1, g.head_dim)
        queries, keys, values = torch.split(split, [heads, kv_heads, kv_heads], dim=2)
        if layer.query_norm is not None and layer.key_norm is not None:
            queries = norm(queries.contiguous(), layer.query_norm, g.epsilon)
            keys = norm(keys.contiguous(), layer.key_norm, g.epsilon)
        queries = self._rotation(queries, batch.positions) * (1 / math.sqrt(g.head_dim))
        keys = self._rotation(keys, batch.positions)
        # (shards, rows, heads of a shard, ...) to (rows, heads of the rank, ...)
        grouped = (batch.rows, self.kv_heads, heads // kv_heads, g.head_dim)
        queries = queries.transpose(0, 1).reshape(grouped)
        count = batch.attention.slots.shape[0]
        keys, values = (
            part.transpose(0, 1).reshape(batch.rows, self.kv_heads, g.head_dim)[:count]
            for part in (keys, values)
        )
        cache.write(index, keys, values, batch.attention.slots)
        out = hidden.new_zeros(grouped)
        batch.attention(cache, index, queries, out)
        by_shard = out.view(batch.rows, self._shards, -1).transpose(0, 1).contiguous()
        return self._reduce(by_shard, layer.output)

    def _mlp(self, layer: LayerWeights, hidden: Tensor) -> Tensor:
        rows = norm(hidden, layer.mlp_norm, self.geometry.epsilon)
        width = self.geometry.intermediate // self.geometry.shards
        gate, up = self._apply(rows, layer.gate_up, 2 * width).chunk(2, dim=-1)
        return self._reduce(silu(gate.contiguous()) * up, layer.down)

    def _apply(self, rows: Tensor, matrix: Callable[[int], Tensor], width: int) -> Tensor:
        """The same rows times each logical shard: (shards, rows, width)."""
        out = rows.new_empty(self._shards, rows.shape[0], width)
        for shard in range(self._shards):
            product(rows, matrix(shard), out[shard])
        return out

    def _reduce(self, by_shard: Tensor, matrix: Callable[[int], Tensor]) -> Tensor:
        """Each shard's rows times its shard, added over all ranks in the order of shards."""
        out = by_shard.new_empty(self._shards, by_shard.shape[1], self.geometry.hidden)
        for shard in range(self._shards):
            product(by_shard[shard], matrix(shard), out[shard])
        return ordered_sum(self._group.gather(out).flatten(0, 1))
