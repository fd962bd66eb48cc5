"""The choice of `noise` in one pass over the logits, for GPUs with Triton.

Its result is that of `Noise.choose` bit for bit: the same integers, and no multiplication is fused
with an addition, which would be rounded once where two operations are rounded twice.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from shuntserve_core.sampling.noise import MIX_MULTIPLIERS, MIX_SHIFTS, TABLE_SHIFT

_BLOCK = 4096


@triton.jit
def _choose(
    logits,
    stride,
    tokens,
    keys,
    slopes,
    intercepts,
    best,
    index,
    vocab,
    blocks,
    m0: tl.constexpr,
    m1: tl.constexpr,
    m2: tl.constexpr,
    s1: tl.constexpr,
    s2: tl.constexpr,
    table_shift: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    token = part * block + tl.arange(0, block)
    there = token < vocab
    key = keys + row * 4
    k0 = tl.load(key).to(tl.uint32, bitcast=True)
    k1 = tl.load(key + 1).to(tl.uint32, bitcast=True)
    k2 = tl.load(key + 2).to(tl.uint32, bitcast=True)
    mixed = tl.load(tokens + token, mask=there, other=0).to(tl.uint32, bitcast=True)
    mixed = (mixed ^ k0) * tl.full((), m0, tl.uint32)
    mixed = (mixed ^ (mixed >> s1) ^ k1) * tl.full((), m1, tl.uint32)
    mixed = (mixed ^ (mixed >> s2) ^ k2) * tl.full((), m2, tl.uint32)
    value = mixed.to(tl.int32, bitcast=True).to(tl.float32)
    entry = value.to(tl.uint32, bitcast=True) >> table_shift
    noise = value * tl.load(slopes + entry) + tl.load(intercepts + entry)
    score = tl.load(logits + row * stride + token, mask=there, other=-float("inf")) + noise
    top, at = tl.max(score, axis=0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(best + row * blocks + part, top)
    tl.store(index + row * blocks + part, part * block + at)


def choose(
    logits: Tensor, keys: Tensor, tokens: Tensor, slopes: Tensor, intercepts: Tensor
) -> Tensor:
    """A token of each row: see `Noise.choose`; the rest are what `Noise` has."""
    rows, vocab = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    blocks = triton.cdiv(vocab, _BLOCK)
    best = torch.empty((rows, blocks), dtype=torch.float32, device=logits.device)
    index = torch.empty((rows, blocks), dtype=torch.int64, device=logits.device)
    _choose[(rows, blocks)](
        logits,
        logits.stride(0),
        tokens,
        keys,
        slopes,
        intercepts,
        best,
        index,
        vocab,
        blocks,
        *MIX_MULTIPLIERS,
        *MIX_SHIFTS[1:3],
        TABLE_SHIFT,
        _BLOCK,
        enable_fp_fusion=False,
    )
    return index.gather(1, best.argmax(-1, keepdim=True)).squeeze(1)
