"""Processes that borrow memory from a store, do something to it, and get killed.

They are forked from a server that has imported torch and has no context on a card, so that twenty
of them take seconds.  What a holder does is one of the functions below; it says when it is at it
through `ready`.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import multiprocessing.process
import os
import signal
from collections.abc import Callable
from multiprocessing.synchronize import Event
from typing import Any

from gpu_check.rows import CheckFailed

START_SECONDS = 100.0
PATTERN = 0x5A
_ROUNDS = 1 << 30


def context() -> multiprocessing.context.ForkServerContext:
    """Forks from a server that has imported what holders need."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["torch", "triton", "gpu_check.holders", "gpu_check.kernels"])
    return made


class Holder:
    """One such process."""

    def __init__(
        self,
        forks: multiprocessing.context.ForkServerContext,
        act: Callable[..., None],
        *arguments: Any,
    ) -> None:
        self._ready: Event = forks.Event()
        self.process = forks.Process(target=act, args=(self._ready, *arguments), daemon=True)
        self.process.start()
        if not self._ready.wait(START_SECONDS):
            self.kill()
            raise CheckFailed(f"a holder did not get ready, exit status {self.process.exitcode}")

    def kill(self) -> None:
        """SIGKILL, and return at once."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)

    def ended(self, seconds: float) -> int | None:
        """Its exit status once it has ended by itself."""
        self.process.join(seconds)
        return self.process.exitcode


def hold(ready: Event, socket: str, device: str, nbytes: int, shard: Any) -> None:
    """Borrow weights and KV memory, fill the latter, and sit there."""
    from shuntserve_core.tensorstore import StoreClient
    from shuntserve_core.tensorstore.views import KvRange, shard_tensors

    client = StoreClient(socket)
    tensors = shard_tensors(client.attach(shard))
    sums = [tensor.float().sum().item() for tensor in tensors.values()]
    kv = KvRange(nbytes, device)
    kv.own(client.kv_lease("holder", nbytes))
    kv.tensor.fill_(PATTERN)
    _finish(device)
    assert len(sums) == len(tensors)
    ready.set()
    signal.pause()


def write_for_ever(ready: Event, socket: str, device: str, nbytes: int) -> None:
    """Borrow KV memory and never stop to write to it: from one kernel that does not end."""
    from shuntserve_core.tensorstore import StoreClient
    from shuntserve_core.tensorstore.views import KvRange

    client = StoreClient(socket)
    kv = KvRange(nbytes, device)
    kv.own(client.kv_lease("writer", nbytes))
    if device == "cpu":
        kv.tensor.fill_(PATTERN)
        ready.set()
        while True:
            kv.tensor.fill_(PATTERN)
    import time

    import torch

    from gpu_check.kernels import count_up

    count_up(kv.tensor.view(torch.int32), 1)  # compiled, and seen to write
    _finish(device)
    count_up(kv.tensor.view(torch.int32), _ROUNDS)
    time.sleep(0.05)  # it runs by now
    ready.set()
    _finish(device)


def write_weights(ready: Event, socket: str, device: str, shard: Any) -> None:
    """Borrow weights and write to them: must not be survived, nor seen by anybody."""
    from shuntserve_core.tensorstore import StoreClient
    from shuntserve_core.tensorstore.views import shard_tensors

    client = StoreClient(socket)
    tensor = next(iter(shard_tensors(client.attach(shard)).values()))
    ready.set()
    try:
        tensor.fill_(0)
        _finish(device)
    except RuntimeError:  # how CUDA tells of a write to what is mapped for reading
        os._exit(3)
    os._exit(0)


def _finish(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)
