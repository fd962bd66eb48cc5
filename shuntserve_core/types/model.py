"""The facts of a transformer that decide its cost."""

from __future__ import annotations

import math
from functools import cached_property
from itertools import accumulate

from attrs import field, frozen
from attrs.validators import ge, in_

from shuntserve_core.types.dtypes import DTYPE_BYTES, dtype_bytes

MOST_LAYERS = 10_000
MOST_WIDTH = 10_000_000
"""Of heads, widths and vocabularies; what a file says beyond these is damage, and lists are made
as long as these numbers."""
MOST_POSITIONS = 10**9

_dtype = in_(tuple(DTYPE_BYTES))


@frozen
class ModelSpec:
    """A decoder-only transformer with grouped-query attention and a gated MLP."""

    name: str
    layers: int = field(validator=ge(1))
    hidden: int = field(validator=ge(1))
    heads: int = field(validator=ge(1))
    """Query heads."""
    kv_heads: int = field(validator=ge(1))
    head_dim: int = field(validator=ge(1))
    """Elements of one head; given by the model, and not always hidden / heads."""
    intermediate: int = field(validator=ge(1))
    """Width of the MLP."""
    vocab: int = field(validator=ge(1))
    tied_embeddings: bool = False
    """Whether the output projection is the embedding table."""
    family: str = "llama"
    """`llama`, `qwen2`, `qwen3`: decides biases and query/key norms."""
    max_positions: int = field(default=8192, validator=ge(1))
    """Longest context in tokens."""
    dtype: str = field(default="float16", validator=_dtype)
    """Arithmetic and activations."""
    weight_dtype: str = field(default="float16", validator=_dtype)
    """As the weights of the layers are stored on the GPU."""
    kv_dtype: str = field(default="float16", validator=_dtype)
    """As keys and values are stored."""

    quantization: str = ""
    """What the checkpoint calls the quantisation of its weights; empty for plain weights."""
    weight_bytes: tuple[float, ...] = field(default=(), converter=tuple)
    """Bytes of one weight with its part of a scale, an average for each layer: of a quantised
    checkpoint, which may keep some modules as `dtype`.  Empty: all as `weight_dtype`."""

    @weight_bytes.validator
    def _one_for_each_layer(self, _: object, value: tuple[float, ...]) -> None:
        if value and len(value) != self.layers:
            raise ValueError(f"weight_bytes of {len(value)} layers, the model has {self.layers}")

    @cached_property
    def bytes_per_weight(self) -> float:
        """Bytes of one of the layers' weights on the GPU: an average over all layers."""
        if not self.weight_bytes:
            return dtype_bytes(self.weight_dtype)
        return math.fsum(self.weight_bytes) / self.layers

    def bytes_of_layers(self, layers: range) -> float:
        """Bytes of the weights of some layers."""
        if not self.weight_bytes:
            return len(layers) * self.layer_bytes
        return self.layer_parameters * math.fsum(self.weight_bytes[i] for i in layers)

    def heaviest(self, *, first: bool, last: bool) -> tuple[float, ...]:
        """Bytes of one weight of every layer of a stage, summed, by its number of layers.

        Of a stage that is `first` or `last` in its pipeline it is known which they are; of others
        they are taken to be the heaviest that follow each other.
        """
        each = self.weight_bytes
        if len(set(each)) < 2:
            return tuple(count * self.bytes_per_weight for count in range(self.layers + 1))
        ends = list(accumulate(each, initial=0.0))
        counts = range(self.layers + 1)
        if first:
            return tuple(ends)
        if last:
            return tuple(ends[-1] - ends[self.layers - count] for count in counts)
        return tuple(
            max(ends[at + count] - ends[at] for at in range(self.layers + 1 - count))
            for count in counts
        )

    @property
    def q_size(self) -> int:
        """Elements of all query heads: Hq."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Elements of all key (or value) heads: Hkv."""
        return self.kv_heads * self.head_dim

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer's matrices (q, k, v, o, gate, up, down) and norms."""
        attention = 2 * self.hidden * self.q_size + 2 * self.hidden * self.kv_size
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        tables = 1 if self.tied_embeddings else 2
        return self.layers * self.layer_parameters + tables * self.vocab * self.hidden

    @property
    def layer_bytes(self) -> float:
        """Bytes of one layer's weights: an average over all layers."""
        return self.layer_parameters * self.bytes_per_weight

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of keys and values that one token leaves in one layer."""
        return 2 * self.kv_size * dtype_bytes(self.kv_dtype)

    def refuse_tensor_parallel(self, degree: int) -> str | None:
        """Why a stage cannot use this tensor-parallel degree, or None if it can.

        As in vLLM: query heads and MLP width must divide; key/value heads must divide, or be
        replicated evenly when there are fewer of them than GPUs.
        """
        if self.heads % degree:
            return f"{self.heads} attention heads do not divide by {degree}"
        if self.kv_heads % degree and degree % self.kv_heads:
            return f"{self.kv_heads} KV heads neither divide by {degree} nor the other way round"
        if self.intermediate % degree:
            return f"the MLP width {self.intermediate} does not divide by {degree}"
        return None
