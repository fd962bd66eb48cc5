"""What fits: weights, activations and the KV cache of a stage."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from shuntserve_core.interfaces.estimator import Floats, Ints, Position
from shuntserve_core.types import GpuSpec, ModelSpec, dtype_bytes

LOGIT_BYTES = 4
"""Logits are converted to float32 for sampling."""


@frozen
class Memory:
    """Bytes on each GPU of a stage, for one model and engine configuration."""

    model: ModelSpec
    utilisation: float
    runtime_bytes: float
    step_tokens: int
    """Most tokens of a step."""
    sequences: int
    """Most requests of a step."""

    def weights(self, t: int, position: Position, layers: Ints) -> Floats:
        """Bytes of weights, by number of layers."""
        model = self.model
        shared = 2 * model.q_size * model.hidden + 3 * model.hidden * model.intermediate
        copied = 2 * model.hidden * _kv_size(model, t) + 2 * model.hidden
        layer = (shared / t + copied) * dtype_bytes(model.weight_dtype)
        tables = int(position.first) + int(position.last)
        if model.tied_embeddings:
            tables = min(tables, 1)
        table = model.vocab / t * model.hidden * dtype_bytes(model.dtype)
        return np.asarray(layers * layer + tables * table, dtype=np.float64)

    def activations(self, t: int, position: Position) -> float:
        """Bytes of intermediate results at the widest point of the largest step."""
        model, width = self.model, dtype_bytes(self.model.dtype)
        attention = model.q_size / t + 2 * _kv_size(model, t)
        token = (3 * model.intermediate / t + 4 * model.hidden + attention) * width
        logits = self.sequences * model.vocab * (width + LOGIT_BYTES) if position.last else 0.0
        return self.step_tokens * token + logits

    def for_cache(self, gpu: GpuSpec, t: int, position: Position, layers: Ints) -> Floats:
        """Bytes left for the KV cache, by number of layers; negative where weights do not fit."""
        usable = gpu.memory_bytes * self.utilisation - self.runtime_bytes
        return usable - self.weights(t, position, layers) - self.activations(t, position)

    def token_bytes(self, t: int, layers: Ints) -> Floats:
        """Bytes of keys and values that one token leaves on each GPU."""
        token = 2 * _kv_size(self.model, t) * dtype_bytes(self.model.kv_dtype)
        return np.asarray(layers * token, dtype=np.float64)


def _kv_size(model: ModelSpec, t: int) -> float:
    """Elements of the key heads of one GPU: whole heads, copied when there are fewer than GPUs."""
    return max(model.kv_heads / t, 1.0) * model.head_dim
