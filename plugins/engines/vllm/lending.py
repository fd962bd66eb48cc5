"""Weights and KV memory of the tensor store, in vLLM's hands.

Parameters become views of the store's memory wherever type and layout agree: for the fused `qkv`
and `gate_up` projections that is so because the store keeps their parts next to one another.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import cattrs
import torch
from attrs import define, frozen
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.platforms import current_platform

from shuntserve_core.tensorstore import KvLease, ShardSpec, StoreClient
from shuntserve_core.tensorstore.views import KvRange, shard_tensors

LOAD_FORMAT = "shuntserve"
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_NOT_PARAMETERS = ("rotary_emb.inv_freq",)
_LARGE = 1 << 16

log = logging.getLogger(__name__)


@define
class Lent:
    """What became of a rank's weights, in bytes."""

    lent: int = 0
    """The store's own memory."""
    copied: int = 0
    """Copies: of another type, of parts that do not lie together, or repacked for the CPU."""


def lends(weights: str) -> bool:
    """Whether an engine here uses the store's memory as it is, by the option `weights`.

    vLLM's kernels for the CPU want weights in an order of their own, behind a handle that another
    process cannot be given.  They are so much faster that each engine makes its own.
    """
    return weights == "lend" or (weights == "auto" and not current_platform.is_cpu())


class StoreTensors:
    """Tensors of the store, one by one or fused."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.unused = set(tensors)
        self.lent: set[int] = set()
        """Addresses of what was not copied."""

    def parameter(self, name: str, dtype: torch.dtype) -> Tensor:
        """What belongs into one of vLLM's parameters.  Raises KeyError."""
        names = self._sources(name)
        parts = [self._tensors[one] for one in names]
        self.unused.difference_update(names)
        adjacent = all(_follows(a, b) for a, b in pairwise(parts))
        if adjacent:
            rows = sum(part.shape[0] for part in parts)
            stored = parts[0].as_strided((rows, *parts[0].shape[1:]), parts[0].stride())
        else:
            stored = torch.cat(parts)
        tensor = stored.to(dtype)
        if adjacent and tensor is stored:
            self.lent.add(tensor.data_ptr())
        return tensor

    def _sources(self, name: str) -> list[str]:
        for fused, parts in _FUSED.items():
            if f".{fused}." in name:
                return [name.replace(fused, part) for part in parts]
        # A stage that is last, but not first, has a tied table under the other name.
        return [_HEAD if name == _EMBEDDING and name not in self._tensors else name]


def _follows(first: Tensor, second: Tensor) -> bool:
    """Whether they are rows of one tensor, one right behind the other."""
    same = (first.untyped_storage().data_ptr(), first.dtype, first.shape[1:])
    return (second.untyped_storage().data_ptr(), second.dtype, second.shape[1:]) == same and (
        first.data_ptr() + first.nbytes == second.data_ptr()
    )


@register_model_loader(LOAD_FORMAT)
class StoreLoader(BaseModelLoader):
    """Has a model use the weights in a tensor store.

    `model_loader_extra_config`: `socket` of the store, `shard` (a `ShardSpec` as plain data), and
    `lend`, False where vLLM may repack weights into memory of its own.
    """

    def download_model(self, model_config: ModelConfig) -> None:
        """The store has it."""

    def create_model(
        self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = ""
    ) -> nn.Module:
        """The model, with parameters that take no memory until they are lent some."""
        with _Hollow():
            return super().create_model(vllm_config, model_config, prefix)

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Lend every parameter its memory.  Raises ValueError where they do not fit."""
        options = self.load_config.model_loader_extra_config
        shard = cattrs.structure(options["shard"], ShardSpec)
        with StoreClient(options["socket"]) as store:
            store.load(shard)
            tensors = StoreTensors(shard_tensors(store.attach(shard)))
        for name, parameter in model.named_parameters():
            try:
                tensor = tensors.parameter(name, parameter.dtype)
            except KeyError as error:
                raise ValueError(f"the store has no tensor for {name}: {error}") from None
            if tensor.shape != parameter.shape:
                raise ValueError(
                    f"{name} is {list(parameter.shape)} in vLLM and {list(tensor.shape)} in store"
                )
            parameter.data = tensor
        unused = sorted(n for n in tensors.unused if not n.endswith(_NOT_PARAMETERS))
        if unused:
            raise ValueError(f"vLLM has no place for {', '.join(unused)}")
        self._lent = tensors.lent
        self._multiplied = {
            module: module.weight.nbytes
            for module in model.modules()
            if isinstance(module, LinearBase | ParallelLMHead)
        }
        if options["lend"]:
            for module in self._multiplied:
                module._cpu_skip_gemm_dispatch = True

    def load_model(
        self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = ""
    ) -> nn.Module:
        """As vLLM's.  On a CPU, tables keep a packed form only where something multiplies by it."""
        model = super().load_model(vllm_config, model_config, prefix)
        lend = self.load_config.model_loader_extra_config["lend"]
        for module in model.modules():
            table = isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear")
            if table and (lend or not isinstance(module, ParallelLMHead)):
                module.cpu_linear = nn.functional.linear
        model.shuntserve_lent = report = self._report(model, lend)  # type: ignore[assignment]
        log.info("%d bytes of weights lent, %d copied", report.lent, report.copied)
        return model

    def _report(self, model: nn.Module, lend: bool) -> Lent:
        """What there is in the end: vLLM has dropped what it repacked, but for tables."""
        sizes = {parameter: parameter.nbytes for parameter in model.parameters()}
        lent = sum(n for parameter, n in sizes.items() if parameter.data_ptr() in self._lent)
        copied = sum(sizes.values()) - lent
        if current_platform.is_cpu() and not lend:
            copied += sum(self._multiplied.values())
        return Lent(lent, copied)


class _Hollow(TorchFunctionMode):
    """Large tensors made by `torch.empty` are one element, seen again and again."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.empty:
            return func(*args, **kwargs)
        size = kwargs.pop("size", None) or (args[0] if len(args) == 1 else args)
        shape = (size,) if isinstance(size, int) else tuple(size)
        if math.prod(shape) < _LARGE:
            return torch.empty(shape, **kwargs)
        return torch.zeros(1, **kwargs).expand(shape)


class LentMemory(TorchFunctionMode):
    """While it is entered, the one buffer of bytes that vLLM makes for keys and values is ours.

    vLLM wants zeros, and has them once it serves: what is here before is scratch memory.  Raises
    RuntimeError on leaving if it was not asked for exactly once.
    """

    def __init__(self, memory: Tensor) -> None:
        super().__init__()
        self._memory = memory
        self._asked = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.zeros or kwargs.get("dtype") is not torch.int8:
            return func(*args, **kwargs)
        self._asked += 1
        nbytes = int(args[0])
        if nbytes > self._memory.numel():
            raise RuntimeError(f"{nbytes} bytes of KV memory wanted of {self._memory.numel()}")
        return self._memory[:nbytes]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if self._asked != 1 and not any(error):
            raise RuntimeError(f"vLLM asked for KV memory {self._asked} times, not once")


@frozen
class Taken:
    """How long it took a rank to come to its KV memory, in seconds."""

    waited: float
    """For whoever owned it."""
    mapped: float


class KvMemory:
    """A rank's KV memory: addresses of its own from the start, the store's memory once it is owned.

    Before that they are backed by scratch memory, where everything is seen again and again: vLLM is
    set up, warmed up and its graphs are captured on it.
    """

    def __init__(self, socket: str, nbytes: int, device: str) -> None:
        self._store = StoreClient(socket)
        self._range = KvRange(nbytes, device)
        self._range.practise()
        self._lease: KvLease | None = None

    @property
    def memory(self) -> Tensor:
        """All of it as bytes, always at the same address."""
        return self._range.tensor.view(torch.int8)

    @property
    def to_come(self) -> int:
        """Bytes that the store has yet to allocate before this can be owned."""
        return max(self._range.nbytes - self._store.stats().memory.kv, 0)

    def own(self, owner: str) -> Taken:
        """Put the store's memory in its place: zeros, and nobody else's.

        Waits until whoever owns it has given it back.
        """
        began = time.perf_counter()
        self._lease = self._store.kv_lease(owner, self._range.nbytes)
        leased = time.perf_counter()
        self._range.own(self._lease)
        return Taken(leased - began, time.perf_counter() - leased)
