"""Time one transformer layer on this machine's device with PyTorch.

The layer is a Llama's: norms, rotary embedding, grouped-query attention over a KV cache, gated MLP,
residual sums, with random weights.  It is what an engine computes without its fused kernels, so
small batches take a little longer here than in vLLM.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from attrs import define, field
from torch import Tensor
from torch.nn import functional

from shuntserve_core.errors import UserError
from shuntserve_core.types import ModelSpec

WARM_UPS = 2
LEAST_RUNS = 3
ROPE_BASE = 10_000.0


def default_device() -> str:
    """The first CUDA device, else the processor."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def describe_device(device: str) -> str:
    """What a person calls the device."""
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} threads"


@define(frozen=True, slots=False)
class LayerBench:
    """One layer of `model` with random weights on `device`."""

    model: ModelSpec
    device: str = field(factory=default_device)
    budget: float = 2.0
    """Seconds to spend on each measurement, apart from warming up."""

    def __attrs_post_init__(self) -> None:
        """Refuse what PyTorch's own products cannot compute."""
        if self.model.weight_dtype != self.model.dtype or self.model.kv_dtype != self.model.dtype:
            raise UserError(
                "a quantised layer cannot be measured",
                where="--measure",
                remedy="give a model whose weight_dtype and kv_dtype are its dtype",
            )

    @cached_property
    def _weights(self) -> dict[str, Tensor]:
        model = self.model
        q, kv, h, inner = model.q_size, model.kv_size, model.hidden, model.intermediate
        shapes = {
            "qkv": (q + 2 * kv, h),
            "o": (h, q),
            "gate_up": (2 * inner, h),
            "down": (h, inner),
            "norm": (h,),
        }
        return {name: self._random(*shape) for name, shape in shapes.items()}

    def _random(self, *shape: int) -> Tensor:
        dtype = getattr(torch, self.model.dtype)
        return torch.randn(*shape, device=self.device, dtype=dtype) * 0.02

    def prefill(self, tokens: int) -> float:
        """Median seconds over a prompt of `tokens`, in one go."""
        return self._time(self.prefill_run(tokens))

    def decode(self, batch: int, context: int) -> float:
        """Median seconds of a step of `batch` requests with `context` cached tokens each."""
        return self._time(self.decode_run(batch, context))

    def prefill_run(self, tokens: int) -> Callable[[], Tensor]:
        """What `prefill` times: the layer's output, (tokens, hidden)."""
        x = self._random(tokens, self.model.hidden)
        angles = self._angles(0, tokens)
        return lambda: self._layer(x, angles, self._attend_prompt)

    def decode_run(self, batch: int, context: int) -> Callable[[], Tensor]:
        """What `decode` times: the layer's output, (batch, hidden)."""
        model = self.model
        x = self._random(batch, model.hidden)
        angles = self._angles(context, 1)
        shape = (batch, model.kv_heads, context + 1, model.head_dim)
        keys, values = self._random(*shape), self._random(*shape)
        return lambda: self._layer(
            x, angles, lambda q, k, v: self._attend_cache(q, k, v, keys, values)
        )

    def _layer(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        model, w = self.model, self._weights
        normed = functional.rms_norm(x, (model.hidden,), w["norm"])
        sizes = [model.q_size, model.kv_size, model.kv_size]
        q, k, v = torch.split(functional.linear(normed, w["qkv"]), sizes, -1)
        q, k, v = (part.reshape(len(x), -1, model.head_dim) for part in (q, k, v))
        x = x + functional.linear(
            attend(_rotate(q, angles), _rotate(k, angles), v).flatten(-2), w["o"]
        )
        normed = functional.rms_norm(x, (model.hidden,), w["norm"])
        gate, up = functional.linear(normed, w["gate_up"]).chunk(2, -1)
        return x + functional.linear(functional.silu(gate) * up, w["down"])

    def _attend_prompt(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(tokens, heads, head_dim) each, all of one prompt."""
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
        grouped = self.model.heads != self.model.kv_heads
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return out[0].transpose(0, 1)

    def _attend_cache(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """(batch, heads, head_dim) each, one token of every request."""
        keys[:, :, -1], values[:, :, -1] = k, v
        grouped = self.model.heads != self.model.kv_heads
        q = q[:, :, None]
        return functional.scaled_dot_product_attention(q, keys, values, enable_gqa=grouped)[:, :, 0]

    def _angles(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        half = self.model.head_dim // 2
        frequency = ROPE_BASE ** (-torch.arange(half, device=self.device) / half)
        position = torch.arange(start, start + count, device=self.device)
        angle = position[:, None, None] * frequency
        dtype = getattr(torch, self.model.dtype)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def _time(self, run: Callable[[], Tensor]) -> float:
        try:
            with torch.inference_mode():
                for _ in range(WARM_UPS):
                    run()
                return statistics.median(self._runs(run))
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the layer does not fit on {self.device}",
                where="--measure",
                remedy="ask for fewer tokens or a smaller batch",
            ) from error

    def _runs(self, run: Callable[[], Tensor]) -> list[float]:
        """Seconds of single runs, until the budget is spent."""
        once = self._once_on_cuda if self.device.startswith("cuda") else self._once_on_host
        seconds: list[float] = []
        end = time.perf_counter() + self.budget
        while len(seconds) < LEAST_RUNS or time.perf_counter() < end:
            seconds.append(once(run))
        return seconds

    def _once_on_cuda(self, run: Callable[[], Tensor]) -> float:
        event: Any = torch.cuda.Event
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def _once_on_host(self, run: Callable[[], Tensor]) -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin


def _rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of (tokens, heads, head_dim)."""
    cos, sin = angles
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)
