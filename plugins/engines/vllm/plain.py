"""Objects that vLLM and torch send between ranks, read as data alone.

Both pickle what a rank is to tell the others.  Their connections ask for no secret, so whoever gets
between two ranks could have them run anything.  `read_plain` has them admit plain values and what a
tensor is described by; anything else is refused, and ends the engine.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.distributed import distributed_c10d
from vllm.distributed import parallel_state, utils
from vllm.distributed.device_communicators import cpu_communicator, shm_broadcast

_NAMES = frozenset(
    {
        ("builtins", "bytearray"),
        ("builtins", "complex"),
        ("builtins", "frozenset"),
        ("builtins", "set"),
        ("collections", "OrderedDict"),
        ("torch", "Size"),
        ("vllm.distributed.parallel_state", "TensorMetadata"),
    }
)


class PlainUnpickler(pickle.Unpickler):
    """Plain values, tensors' sizes and types; for all else `pickle.UnpicklingError`."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle asks for by name."""
        if (module, name) in _NAMES:
            return super().find_class(module, name)
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        raise pickle.UnpicklingError(f"another rank sent a {module}.{name}, which is no data")


def loads(data: Any, **options: Any) -> Any:
    """As `pickle.loads`, for data alone."""
    return PlainUnpickler(io.BytesIO(data), **options).load()


class PlainPickle(ModuleType):
    """In place of the module `pickle`: what it reads is data alone."""

    def __init__(self) -> None:
        super().__init__("pickle")
        self.loads = loads
        self.Unpickler = PlainUnpickler

    def __getattr__(self, name: str) -> Any:
        if name == "load":
            raise AttributeError("ranks read no pickles from files")
        return getattr(pickle, name)


def read_plain() -> None:
    """From now on this process unpickles nothing but data from other ranks.

    Nor are there vLLM's queues for broadcasts, which listen for more: ranks broadcast in their
    collectives.
    """
    plain = PlainPickle()
    for module in (parallel_state, utils, cpu_communicator, shm_broadcast):
        module.pickle = plain  # type: ignore[attr-defined]
    distributed_c10d._unpickler = PlainUnpickler  # type: ignore[attr-defined]
    parallel_state.init_model_parallel_group = _without_queue(
        parallel_state.init_model_parallel_group
    )


def _without_queue(group: Callable[..., Any]) -> Any:
    def make(*args: Any, use_message_queue_broadcaster: bool = False, **kwargs: Any) -> Any:
        return group(*args, **kwargs)

    return make
