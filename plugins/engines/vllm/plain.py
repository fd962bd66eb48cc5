"""Objects that vLLM and torch send between ranks, as data alone.

Both pickle what a rank is to tell the others.  Their connections ask for no secret, so whoever gets
between two ranks could have them run anything.  `read_plain` has them send and read msgpack in its
place, as `payload` does: anything but data is refused, and ends the engine.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, BinaryIO

from torch.distributed import distributed_c10d
from vllm.distributed import parallel_state
from vllm.distributed.device_communicators import (
    all_reduce_utils,
    cpu_communicator,
    shm_broadcast,
)

from shuntserve_plugins.engines.vllm.payload import packed, unpacked

_THEIRS = "vllm.distributed"
_OWN_PROCESS = all_reduce_utils.__name__
"""Starts a process of its own to try out GPUs, and pickles for that, over a pipe and a file."""


class PlainPickle(ModuleType):
    """In place of the module `pickle`."""

    def __init__(self) -> None:
        super().__init__("pickle")

    def dumps(self, value: Any, *_: Any, **__: Any) -> bytes:
        """A value as msgpack."""
        return packed(value)

    def loads(self, data: Any, **_: Any) -> Any:
        """What `dumps` was given.  Raises `PayloadError` for anything else."""
        return unpacked(data)


class PlainPickler:
    """In place of the class `Pickler`."""

    def __init__(self, file: BinaryIO, *_: Any) -> None:
        self._file = file

    def dump(self, value: Any) -> None:
        """Write a value as msgpack."""
        self._file.write(packed(value))


class PlainUnpickler:
    """In place of the class `Unpickler`."""

    def __init__(self, file: BinaryIO, **_: Any) -> None:
        self._file = file

    def load(self) -> Any:
        """What was dumped.  Raises `PayloadError` for anything else."""
        return unpacked(self._file.read())


def read_plain() -> None:
    """From now on this process takes nothing but data from other ranks.

    Nor are there vLLM's queues for broadcasts, which listen for more: ranks broadcast in their
    collectives.
    """
    plain = PlainPickle()
    for module in (parallel_state, cpu_communicator, shm_broadcast, *_pickling()):
        module.pickle = plain  # type: ignore[attr-defined]
    distributed_c10d._pickler = PlainPickler  # type: ignore[misc, assignment]
    distributed_c10d._unpickler = PlainUnpickler  # type: ignore[misc, assignment]
    parallel_state.init_model_parallel_group = _without_queue(
        parallel_state.init_model_parallel_group
    )


def _pickling() -> list[ModuleType]:
    """Every module by which vLLM's ranks talk, as far as it would pickle."""
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(_THEIRS)
        and name != _OWN_PROCESS
        and getattr(module, "pickle", None) is pickle
    ]


def _without_queue(group: Callable[..., Any]) -> Any:
    def make(*args: Any, use_message_queue_broadcaster: bool = False, **kwargs: Any) -> Any:
        return group(*args, **kwargs)

    return make
