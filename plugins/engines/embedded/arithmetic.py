"""Arithmetic whose result for a row depends on that row alone, to the last bit.

Floating-point sums depend on their order, and libraries choose the order by the shape of the
operands.  So every product here has a shape that does not depend on what else is computed: rows
come in tiles of `TILE`, weights in logical shards that are copied to one scratch buffer first.
Elementwise operations on whole vectors are exact whatever their shape.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from shuntserve_plugins.engines.embedded.geometry import Rope

TILE = 8
"""Rows of a product.  A step for one token costs as much as one for eight."""


def padded(rows: int) -> int:
    """Rows in whole tiles."""
    return -(-rows // TILE) * TILE


class Scratch:
    """Room for one matrix in float32: weights are kept as they are stored, and widened here.

    What a call returns is overwritten by the next one.
    """

    def __init__(self, elements: int) -> None:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._pages = mmap.mmap(-1, elements * torch.float32.itemsize, flags=private)
        self._memory = torch.frombuffer(self._pages, dtype=torch.float32)

    def release(self) -> None:
        """Take no memory until the next use."""
        self._pages.madvise(mmap.MADV_DONTNEED)

    def rows(self, parts: list[Tensor], total: int | None = None) -> Tensor:
        """The parts under one another, as one contiguous float32 matrix.

        `total` adds rows of zeros up to so many.
        """
        columns = parts[0].shape[1]
        count = sum(part.shape[0] for part in parts)
        matrix = self._memory[: (total or count) * columns].view(-1, columns)
        start = 0
        for part in parts:
            matrix[start : start + part.shape[0]].copy_(part)
            start += part.shape[0]
        matrix[start:].zero_()
        return matrix


def product(rows: Tensor, matrix: Tensor, out: Tensor) -> None:
    """`rows` times the transpose of `matrix` (outputs, inputs); rows come in whole tiles."""
    transposed = matrix.t()
    for start in range(0, rows.shape[0], TILE):
        stop = start + TILE
        torch.mm(rows[start:stop], transposed, out=out[start:stop])


def norm(rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm of each row (arXiv 1910.07467)."""
    scale = torch.rsqrt(rows.square().mean(-1, keepdim=True) + epsilon)
    return weight * (rows * scale)


def ordered_sum(parts: Tensor) -> Tensor:
    """Sum over the first dimension, first to last."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


class Rotation:
    """Cosines and sines of rotary embeddings (arXiv 2104.09864) for positions below `length`."""

    def __init__(self, rope: Rope, head_dim: int, length: int) -> None:
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        frequencies = _scaled(1.0 / (rope.theta**exponents), rope)
        # Whole vectors, so that no position is computed by another routine at the table's end.
        positions = torch.arange(-(-length // 64) * 64).float()
        angles = positions[:, None] * frequencies
        self.cosines = torch.cat([angles.cos()] * 2, dim=-1)
        self.sines = torch.cat([angles.sin()] * 2, dim=-1)

    def __call__(self, heads: Tensor, positions: Tensor) -> Tensor:
        """Rotate heads of shape (shards, rows, heads, head_dim) at the positions of the rows."""
        cosine, sine = self.cosines[positions][:, None], self.sines[positions][:, None]
        low, high = heads.chunk(2, dim=-1)
        return heads * cosine + torch.cat([-high, low], dim=-1) * sine


def _scaled(frequencies: Tensor, rope: Rope) -> Tensor:
    if rope.scaling == "default":
        return frequencies
    factor = rope.parameters["factor"]
    if rope.scaling == "linear":
        return frequencies / factor
    # Llama 3.1: long wavelengths are stretched, short ones kept, those between interpolated.
    low, high = rope.parameters["low_freq_factor"], rope.parameters["high_freq_factor"]
    old = rope.parameters["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    smooth = (old / wavelengths - low) / (high - low)
    between = (1 - smooth) * frequencies / factor + smooth * frequencies
    stretched = torch.where(wavelengths > old / low, frequencies / factor, between)
    return torch.where(wavelengths < old / high, frequencies, stretched)
