"""Operators of a decoder-only transformer: FLOPs, bytes and seconds on one GPU of a stage.

Sizes: H hidden, Hq elements of all query heads, Hkv of all key heads, I the MLP's width, V the
vocabulary, t GPUs.  Every function takes numbers or arrays that broadcast, and counts one layer and
one engine step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from attrs import frozen

from shuntserve_core.types import ModelSpec, dtype_bytes
from shuntserve_plugins.estimators.roofline.collectives import (
    all_gather,
    all_reduce,
    hand_off,
    spread,
)
from shuntserve_plugins.estimators.roofline.hardware import Rates
from shuntserve_plugins.estimators.roofline.parts import (
    Part,
    Parts,
    roofline,
    streaming,
    total,
    waiting,
)

SMALL_TILE, TILE = 64, 128
"""Rows that a matrix product works on at a time: a product over 129 tokens costs what one over 256
does.  Vidur's profiles step at 64, and from 128 on at every multiple."""

NORM_PASSES = 8
"""Tensors of tokens × H that a layer's two norms read and write, residual sums fused: each reads
activations and residual, and writes both."""

SAMPLING_BYTES = 24
"""Bytes moved for each logit in sampling: conversion to float32, scaling, softmax and the draw."""


@frozen
class Operators:
    """The operators of one model."""

    model: ModelSpec
    eager_layer_seconds: float = 0.0
    """Least seconds a layer and step: the host's, where kernels are launched one by one."""

    @property
    def width(self) -> float:
        """Bytes of an activation."""
        return dtype_bytes(self.model.dtype)

    def linear(self, rates: Rates, tokens: Any) -> Parts:
        """Everything but attention: products, element-wise work, all-reduces and launches."""
        model, t = self.model, rates.t
        H, Hq, inner = model.hidden, model.q_size, model.intermediate
        Hkv = rates.kv_heads * model.head_dim
        rows = padded(tokens)
        parts = {
            "qkv": self._product(rates, tokens, rows, H, Hq / t + 2 * Hkv),
            "o": self._product(rates, tokens, rows, Hq / t, H),
            "gate-up": self._product(rates, tokens, rows, H, 2 * inner / t),
            "down": self._product(rates, tokens, rows, inner / t, H),
            "element-wise": self._elementwise(rates, tokens, Hq / t, Hkv),
            # After attention and after the MLP.
            "all-reduce": all_reduce(rates, tokens * H * self.width).times(2 * (t > 1)),
        }
        idle = np.maximum(self.eager_layer_seconds - total(parts), 0.0)
        return {**parts, "launches": waiting(np.maximum(rates.layer_overhead, idle))}

    def _product(self, rates: Rates, tokens: Any, rows: Any, k: Any, n: Any) -> Part:
        """tokens × k times k × n, the weights read once."""
        weights = k * n * self.model.bytes_per_weight
        moved = weights + tokens * (k + n) * self.width
        return roofline(2 * rows * k * n / rates.matrix_flops, moved / rates.bandwidth)

    def _elementwise(self, rates: Rates, tokens: Any, q: Any, kv: Any) -> Part:
        """Norms and residuals; rotary embedding of q and k; KV write; gated activation."""
        model = self.model
        activations = NORM_PASSES * model.hidden + 2 * (q + kv) + 2 * kv
        activations = activations + 3 * model.intermediate / rates.t
        written = 2 * kv * dtype_bytes(model.kv_dtype)
        moved = tokens * (activations * self.width + written)
        return streaming(moved / rates.elementwise_bandwidth)

    def prefill_attention(self, rates: Rates, pairs: Any, context: Any) -> Part:
        """Causal attention over `pairs` of query and key, reading `context` cached tokens."""
        flops = 4 * self.model.q_size / rates.t * pairs
        return roofline(flops / rates.attention_flops, self._cache(rates, context))

    def decode_attention(self, rates: Rates, context: Any) -> Part:
        """One query a request; `context` cached tokens are read, all requests together."""
        flops = 4 * self.model.q_size / rates.t * context
        return roofline(flops / rates.attention_flops, self._cache(rates, context))

    def _cache(self, rates: Rates, context: Any) -> Any:
        """Seconds to read keys and values of `context` tokens."""
        elements = 2 * rates.kv_heads * self.model.head_dim
        return context * elements * dtype_bytes(self.model.kv_dtype) / rates.kv_bandwidth

    def around(
        self, rates: Rates, tokens: Any, rows: Any, first: Any, last: Any
    ) -> dict[str, Part]:
        """What a stage does besides layers, in a step of `tokens` of which `rows` need logits."""
        model, t, several = self.model, rates.t, rates.t > 1
        H, V, hidden = model.hidden, model.vocab, tokens * model.hidden * self.width
        table = V / t * H * self.width
        product = roofline(
            2 * padded(rows) * V / t * H / rates.half_flops,
            (table + rows * (H + V / t) * self.width) / rates.bandwidth,
        )
        return {
            "embedding": streaming(2 * hidden / rates.elementwise_bandwidth)
            .plus(all_reduce(rates, hidden).times(several))
            .times(first),
            "logits": product.times(last),
            "logits gather": all_gather(rates, rows * V * self.width).times(several * last),
            "sampling": streaming(SAMPLING_BYTES * rows * V / rates.elementwise_bandwidth).times(
                last
            ),
            "hand-off": hand_off(rates, hidden, last),
            "spread": spread(rates, hidden, first).times(several),
        }


def padded(tokens: Any) -> Any:
    """Rows that a matrix product over `tokens` computes."""
    return np.where(
        tokens <= SMALL_TILE, np.maximum(tokens, 1), np.ceil(np.asarray(tokens) / TILE) * TILE
    )
