"""Paged keys and values, and attention over them in tiles that depend on positions alone.

A query at position p is computed in the tile of positions 16 t to 16 t + 15 that holds p, against
the keys of blocks 0 to t, whatever else is computed with it: alone (decode), with others of its
tile (prefill), or after a cut anywhere (chunks, resumption).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from shuntserve_plugins.engines.embedded.plan import BLOCK


@frozen
class Span:
    """Consecutive tokens of one sequence, at consecutive rows of a step."""

    row: int
    """First row."""
    start: int
    """Position of the first token."""
    count: int
    blocks: Sequence[int]
    """The sequence's blocks of KV memory, in order; at least up to the last token."""


class KvCache:
    """Keys and values of a rank's layers and KV heads, in float32."""

    def __init__(self, layers: int, heads: int, head_dim: int, blocks: int, memory: Tensor) -> None:
        shape = (layers, 2 * heads, blocks, BLOCK, head_dim)
        self._layers = memory[: math.prod(shape)].view(shape)
        self._heads = heads
        self.blocks = blocks

    def write(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """Put keys and values (rows, heads, head_dim) into slots (block x 16 + offset)."""
        cache = self._layers[layer].flatten(1, 2)
        cache[: self._heads].index_copy_(1, slots, keys.transpose(0, 1))
        cache[self._heads :].index_copy_(1, slots, values.transpose(0, 1))

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of some blocks, each (heads, tokens, head_dim)."""
        both = self._layers[layer].flatten(2).index_select(1, blocks)
        both = both.view(2, self._heads, -1, self._layers.shape[-1])
        return both[0], both[1]


class Attention:
    """Causal attention of one step, the same for every layer."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        self._tiles = [tile for span in spans for tile in _tiles(span, device)]
        slots = [_slots(span) for span in spans]
        self.slots = (torch.cat(slots) if slots else torch.empty(0, dtype=torch.int64)).to(device)
        self._future = _FUTURE.to(device)

    def __call__(self, cache: KvCache, layer: int, queries: Tensor, out: Tensor) -> None:
        """Queries of shape (rows, KV heads, queries a KV head, head_dim), scaled; so is `out`."""
        _, heads, group, head_dim = queries.shape
        tile_queries = queries.new_zeros(heads, BLOCK, group, head_dim)
        for tile in self._tiles:
            keys, values = cache.read(layer, tile.blocks)
            tile_queries.zero_()
            tile_queries[:, tile.within] = queries[tile.rows].transpose(0, 1)
            result = _attend(tile_queries, keys, values, self._future)
            out[tile.rows] = result[:, tile.within].transpose(0, 1)


@frozen
class _Tile:
    """The part of a span in one tile of positions."""

    rows: slice
    """Rows of the step."""
    within: slice
    """Positions in the tile."""
    blocks: Tensor


def _tiles(span: Span, device: torch.device) -> list[_Tile]:
    tiles = []
    blocks = torch.tensor(span.blocks, device=device)
    stop = span.start + span.count
    for index in range(span.start // BLOCK, -(-stop // BLOCK)):
        base = index * BLOCK
        low, high = max(span.start, base), min(stop, base + BLOCK)
        offset = span.row - span.start
        rows = slice(low + offset, high + offset)
        tiles.append(_Tile(rows, slice(low - base, high - base), blocks[: index + 1]))
    return tiles


def _slots(span: Span) -> Tensor:
    positions = torch.arange(span.start, span.start + span.count)
    return torch.tensor(span.blocks)[positions // BLOCK] * BLOCK + positions % BLOCK


_FUTURE = torch.full((BLOCK, BLOCK), -math.inf).triu_(1)[:, None]
"""Added to scores of the last block: a query sees no key after its own position."""


def _attend(queries: Tensor, keys: Tensor, values: Tensor, future: Tensor) -> Tensor:
    heads, _, group, head_dim = queries.shape
    scores = queries.new_empty(heads, BLOCK * group, keys.shape[1])
    for head in range(heads):
        torch.mm(queries[head].view(-1, head_dim), keys[head].t(), out=scores[head])
    scores.view(heads, BLOCK, group, -1)[..., -BLOCK:] += future
    weights = scores.softmax(-1)
    result = torch.empty_like(queries).view(heads, -1, head_dim)
    for head in range(heads):
        torch.mm(weights[head], values[head], out=result[head])
    return result.view(queries.shape)
