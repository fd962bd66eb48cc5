"""Where each tensor is cut for tensor parallelism.

Embeddings and `lm_head` are cut by vocabulary, q/k/v/gate/up by output, o/down by input, and the
rest is replicated.  docs/reference/traw.md states the rules in full.
"""

from __future__ import annotations

import math
import re

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from shuntserve_core.errors import UserError
from shuntserve_core.weights.geometry import Geometry

VOCAB_MULTIPLE = 64
"""Vocabularies are padded to a multiple of this, as vLLM pads them."""

EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"

Bytes2D = NDArray[np.uint8]
"""A tensor as rows of bytes: shape (first dimension, bytes a row)."""

_PROJECTION = re.compile(r"\.(q|k|v|o|gate|up|down)_proj\.(.+)$")
_CUT_BY_INPUT = ("o", "down")
_CUT_BY_KV_HEAD = ("k", "v")
_SUFFIXES = ("weight", "bias", "weight_scale", "weight_scale_inv", "input_scale")


@frozen
class Cut:
    """One rank's part of a tensor: elements `start` to `stop` along `axis`, then zeros."""

    axis: int | None
    """None: the whole tensor."""
    start: int
    stop: int
    padding: int = 0
    """Rows of zeros after the last element."""


def padded_vocab(vocab: int, degree: int) -> int:
    """Rows after padding: the least multiple of 64 and of the degree that holds them all.

    Equal to vLLM's padding wherever vLLM accepts the degree.
    """
    unit = math.lcm(VOCAB_MULTIPLE, degree)
    return -(-vocab // unit) * unit


def cut_of(name: str, shape: tuple[int, ...], geometry: Geometry, degree: int, rank: int) -> Cut:
    """The part of tensor `name` that `rank` of `degree` holds.

    Raises `UserError` where the tensor is of a kind that the rules do not know, or does not divide.
    """
    if name in (EMBEDDING, LM_HEAD):
        return _vocabulary_cut(name, shape, geometry, degree, rank)
    match = _PROJECTION.search(name)
    if not match:
        return Cut(None, 0, 0)
    projection, suffix = match.groups()
    if suffix not in _SUFFIXES:
        raise UserError(
            f"no rule cuts a tensor that ends in {suffix!r}",
            where=name,
            remedy="packed quantisations must be unpacked first",
        )
    axis = 1 if projection in _CUT_BY_INPUT else 0
    # A scale for the whole tensor, or for each row where columns are cut, goes to every rank.
    if len(shape) <= axis or shape[axis] == 1:
        return Cut(None, 0, 0)
    replicas = 1
    if projection in _CUT_BY_KV_HEAD:
        replicas = degree // math.gcd(degree, geometry.kv_heads)
    return _even_cut(name, shape, axis, degree // replicas, rank // replicas)


def _vocabulary_cut(
    name: str, shape: tuple[int, ...], geometry: Geometry, degree: int, rank: int
) -> Cut:
    if shape[0] != geometry.vocab:
        raise UserError(
            f"{shape[0]} rows, but vocab_size is {geometry.vocab}",
            where=name,
            remedy="the config.json is of another model: download both again",
        )
    rows = padded_vocab(geometry.vocab, degree) // degree
    start = min(rank * rows, geometry.vocab)
    stop = min(start + rows, geometry.vocab)
    return Cut(0, start, stop, padding=rows - (stop - start))


def _even_cut(name: str, shape: tuple[int, ...], axis: int, parts: int, part: int) -> Cut:
    if shape[axis] % parts:
        raise UserError(
            f"dimension {axis} of {list(shape)} does not divide by {parts}",
            where=name,
            remedy="choose another tensor-parallel degree",
        )
    size = shape[axis] // parts
    return Cut(axis, part * size, (part + 1) * size)


def shard_shape(shape: tuple[int, ...], cut: Cut) -> tuple[int, ...]:
    """Shape of the part, padding included."""
    if cut.axis is None:
        return shape
    sizes = list(shape)
    sizes[cut.axis] = cut.stop - cut.start + cut.padding
    return tuple(sizes)


def shard_pieces(
    tensor: Bytes2D, shape: tuple[int, ...], itemsize: int, cut: Cut
) -> list[memoryview]:
    """The bytes of the part, as pieces one after another; rows are not copied, columns are."""
    if cut.axis is None:
        return [_flat(tensor)]
    if cut.axis == 1:
        columns = tensor[:, cut.start * itemsize : cut.stop * itemsize]
        return [_flat(np.ascontiguousarray(columns))]
    rows = _flat(tensor[cut.start : cut.stop])
    row_bytes = math.prod(shape[1:]) * itemsize
    return [rows, memoryview(bytes(cut.padding * row_bytes))] if cut.padding else [rows]


def _flat(rows: Bytes2D) -> memoryview:
    return rows.reshape(-1).data


def join_shards(
    shards: list[NDArray[np.uint8]], name: str, shape: tuple[int, ...], geometry: Geometry
) -> NDArray[np.uint8]:
    """Put a tensor together again from every rank's part: the inverse of cutting.

    Shards come in the order of ranks, as bytes of shape (*shard shape, bytes an element); so does
    the result.
    """
    degree = len(shards)
    whole = np.zeros((*shape, shards[0].shape[-1]), np.uint8)
    for rank, shard in enumerate(shards):
        cut = cut_of(name, shape, geometry, degree, rank)
        if cut.axis is None:
            whole[...] = shard
        elif cut.axis == 0:
            whole[cut.start : cut.stop] = shard[: cut.stop - cut.start]
        else:
            whole[:, cut.start : cut.stop] = shard
    return whole
