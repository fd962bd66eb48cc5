"""What fits: weights, what engines need for themselves, and the KV cache of a stage."""

from __future__ import annotations

import numpy as np
from attrs import frozen

from shuntserve_core.interfaces.estimator import Floats, Ints, Position
from shuntserve_core.types import GpuSpec, ModelSpec, dtype_bytes

LOGIT_BYTES = 4
"""Logits are converted to float32 for sampling."""
SAMPLING_BYTES = 20
"""And then sorted for top-p, for each logit: values (4) and their places (8) in order, and
probabilities with their running sum (8).  vLLM 0.32's sampler takes 22.7 in all in its warm-up,
float32 logits included, counted tensor by tensor."""
DEMANDING_BYTES = 40
"""The same where every request wants penalties and log-probabilities too: 43.6 in all."""


@frozen
class Runtime:
    """What processes need on a GPU beside weights, KV cache and intermediate results, in bytes.

    A successor is started beside the engine that it replaces, and the tensor store is a process of
    its own: with two engines there are three CUDA contexts, but weights and KV cache once.
    """

    engines: int = 2
    """On a GPU at the same time."""
    context: float = 0.39e9
    """A CUDA context with the kernels that are loaded."""
    communicator: float = 0.1e9
    """Buffers of one NCCL communicator."""
    workspace: float = 0.1e9
    """Of an engine's libraries, and what its allocator cannot use."""
    by_hand: float | None = None
    """All of it, successor's intermediate results included, in place of the formula."""

    def shared(self) -> float:
        """What does not belong to an engine: the tensor store's context."""
        return self.context

    def own(self, t: int, position: Position) -> float:
        """What each engine has before it computes anything: context and communicators.

        One for tensor parallelism, and one for each neighbour in the pipeline.
        """
        communicators = int(t > 1) + int(not position.first) + int(not position.last)
        return self.context + communicators * self.communicator


@frozen
class Memory:
    """Bytes on each GPU of a stage, for one model and engine configuration."""

    model: ModelSpec
    utilisation: float
    runtime: Runtime
    step_tokens: int
    """Most tokens of a step."""
    sequences: int
    """Most requests of a step."""
    copies: float = 0.0
    """Of the weights, in the type that is computed in, beside the stored ones."""

    def weights(self, t: int, position: Position, layers: Ints) -> Floats:
        """Bytes of weights, by number of layers."""
        model = self.model
        shared = 2 * model.q_size * model.hidden + 3 * model.hidden * model.intermediate
        copied = 2 * model.hidden * _kv_size(model, t) + 2 * model.hidden
        computed = self.copies * dtype_bytes(model.dtype)
        elements = shared / t + copied
        stored = np.asarray(model.heaviest(first=position.first, last=position.last))
        tables = int(position.first) + int(position.last)
        if model.tied_embeddings:
            tables = min(tables, 1)
        table = model.vocab / t * model.hidden * (dtype_bytes(model.dtype) + computed)
        held = elements * (stored[layers] + layers * computed)
        return np.asarray(held + tables * table, dtype=np.float64)

    def working(self, t: int, position: Position, requests: float) -> float:
        """Bytes that one engine takes at the widest point of its largest step.

        With so many requests in flight; weights and KV cache left out.
        """
        model, width = self.model, dtype_bytes(self.model.dtype)
        attention = model.q_size / t + 2 * _kv_size(model, t)
        token = (3 * model.intermediate / t + 4 * model.hidden + attention) * width
        if self.runtime.by_hand is not None:
            return self.step_tokens * token + self.sequences * self._logits(position)
        # A stage that is not the first keeps a buffer for what it receives: two tensors.
        received = 0 if position.first else 2 * model.hidden * width
        steps = self.step_tokens * (token + received)
        sampling = self._logits(position, DEMANDING_BYTES)
        return steps + self.runtime.workspace + requests * sampling

    def _logits(self, position: Position, sampling: int = 0) -> float:
        """Bytes of one request's logits, with so many for the sampling of each."""
        width = dtype_bytes(self.model.dtype) + LOGIT_BYTES + sampling
        return self.model.vocab * width if position.last else 0.0

    def reserved(self, t: int, position: Position) -> float:
        """Bytes for all engines on the GPU at the same time and for the store, beside weights and
        KV cache, with no request in flight."""
        runtime, working = self.runtime, self.working(t, position, 0)
        if runtime.by_hand is not None:
            return runtime.by_hand + working
        return runtime.shared() + runtime.engines * (runtime.own(t, position) + working)

    def request_bytes(self, position: Position) -> float:
        """Bytes that each request in flight adds, beside its KV cache: in the engine that serves,
        and in those that have warmed up for as many."""
        if self.runtime.by_hand is not None:
            return 0.0
        others = (self.runtime.engines - 1) * self._logits(position, SAMPLING_BYTES)
        return self._logits(position, DEMANDING_BYTES) + others

    def for_cache(self, gpu: GpuSpec, t: int, position: Position, layers: Ints) -> Floats:
        """Bytes left for the KV cache, by number of layers; negative where weights do not fit."""
        usable = gpu.memory_bytes * self.utilisation - self.reserved(t, position)
        return usable - self.weights(t, position, layers)

    def token_bytes(self, t: int, layers: Ints) -> Floats:
        """Bytes of keys and values that one token leaves on each GPU."""
        token = 2 * _kv_size(self.model, t) * dtype_bytes(self.model.kv_dtype)
        return np.asarray(layers * token, dtype=np.float64)


def _kv_size(model: ModelSpec, t: int) -> float:
    """Elements of the key heads of one GPU: whole heads, copied when there are fewer than GPUs."""
    return max(model.kv_heads / t, 1.0) * model.head_dim
