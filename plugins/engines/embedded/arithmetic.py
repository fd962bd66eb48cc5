"""Arithmetic whose result for a row depends on that row alone, to the last bit.

Floating-point sums depend on their order, and libraries choose the order by the shape of the
operands.  So every product here has a shape that does not depend on what else is computed: rows
come in tiles of `TILE`, weights in logical shards that are copied to one scratch buffer first.
Elementwise operations on whole vectors are exact whatever their shape.  On a GPU, where a reduction
is cut up by the number of its results, norms come in tiles as well.
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


def settle(device: torch.device) -> None:
    """Have PyTorch compute the same each time on this device, in full float32.

    On a GPU, `CUBLAS_WORKSPACE_CONFIG` must be set besides, before the first product.
    """
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


class Scratch:
    """Room for one matrix in float32: weights are kept as they are stored, and widened here.

    What a call returns is overwritten by the next one.
    """

    def __init__(self, elements: int, device: torch.device) -> None:
        self._elements, self._device = elements, device
        self._pages: mmap.mmap | None = None
        self._memory: Tensor | None = None
        if device.type == "cpu":
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._pages = mmap.mmap(-1, elements * torch.float32.itemsize, flags=private)
            self._memory = torch.frombuffer(self._pages, dtype=torch.float32)

    def release(self) -> None:
        """Take no memory until the next use."""
        if self._pages is not None:
            self._pages.madvise(mmap.MADV_DONTNEED)
        else:
            self._memory = None

    def rows(self, parts: list[Tensor], total: int | None = None) -> Tensor:
        """The parts under one another, as one contiguous float32 matrix.

        `total` adds rows of zeros up to so many.
        """
        columns = parts[0].shape[1]
        count = sum(part.shape[0] for part in parts)
        if self._memory is None:
            self._memory = torch.empty(self._elements, device=self._device)
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
    """Root-mean-square norm of each row (arXiv 1910.07467); the last dimension but one is rows."""
    squares = rows.square()
    on_cpu = rows.device.type == "cpu"
    mean = squares.mean(-1, keepdim=True) if on_cpu else means_by_tiles(squares)
    return weight * (rows * torch.rsqrt(mean + epsilon))


def means_by_tiles(values: Tensor) -> Tensor:
    """Means of rows of any number, `TILE` at a time, so that each is computed in one way."""
    rows = values.reshape(-1, values.shape[-1])
    means = rows.new_zeros(padded(rows.shape[0]), 1)
    tile = rows.new_zeros(TILE, rows.shape[-1])
    for start in range(0, rows.shape[0], TILE):
        part = rows[start : start + TILE]
        tile[: part.shape[0]] = part
        means[start : start + TILE] = tile.mean(-1, keepdim=True)
    return means[: rows.shape[0]].view(*values.shape[:-1], 1)


def ordered_sum(parts: Tensor) -> Tensor:
    """Sum over the first dimension, first to last."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


class Rotation:
    """Cosines and sines of rotary embeddings (arXiv 2104.09864) for positions below `length`.

    They are computed on the CPU, and so the same on every device.
    """

    def __init__(self, rope: Rope, head_dim: int, length: int, device: torch.device) -> None:
        exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
        frequencies = _scaled(1.0 / (rope.theta**exponents), rope)
        # Whole vectors, so that no position is computed by another routine at the table's end.
        positions = torch.arange(-(-length // 64) * 64).float()
        angles = positions[:, None] * frequencies
        self.cosines = torch.cat([angles.cos()] * 2, dim=-1).to(device)
        self.sines = torch.cat([angles.sin()] * 2, dim=-1).to(device)

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
