"""The store as engines and node agents see it.

A client is one connection and blocks; it is used by one thread at a time.  From asyncio call its
methods through `asyncio.to_thread`.  Leases end when the client is closed or its process dies.
What it gets are descriptors of memory; `views` makes tensors of them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cattrs
from attrs import define, frozen

from shuntserve_core.peers import is_same_user
from shuntserve_core.tensorstore import wire
from shuntserve_core.tensorstore.spec import (
    KvUnavailable,
    LoadReport,
    ShardSpec,
    StoreStats,
    TensorStoreError,
    TensorView,
)

CHUNKS_AT_A_TIME = 128
"""As many descriptors of a lease are open at once."""


@define(eq=False)
class Descriptor:
    """Memory that was lent and is not mapped yet; closed with the last reference to it."""

    fd: int
    """-1 once somebody took it."""
    nbytes: int

    def take(self) -> int:
        """The descriptor, for the caller to close."""
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        """Do without it."""
        if self.fd >= 0:
            os.close(self.take())

    def __del__(self) -> None:
        self.close()


@frozen(eq=False)
class Attachment:
    """A shard in the store's memory.  `views.shard_tensors` maps it."""

    device: str
    """Where it is: `cpu` or `cuda:N`."""
    tensors: Mapping[str, TensorView]
    """By name."""
    segments: tuple[Descriptor, ...]
    """One for each segment."""


@frozen(eq=False)
class KvLease:
    """KV memory that belongs to this client alone.  `views.KvRange` maps it."""

    number: int
    device: str
    nbytes: int
    """In whole chunks."""
    chunk_bytes: int
    _fetch: Callable[[int, int], list[int]]

    def descriptors(self) -> Iterator[Descriptor]:
        """Its chunks in order, each of `chunk_bytes`; fetched from the store as they are taken.

        A few are open at a time: an engine may not be allowed to open as many as there are.
        """
        chunks = self.nbytes // self.chunk_bytes
        for start in range(0, chunks, CHUNKS_AT_A_TIME):
            fds = self._fetch(start, min(CHUNKS_AT_A_TIME, chunks - start))
            yield from [Descriptor(fd, self.chunk_bytes) for fd in fds]


class StoreClient:
    """A connection to a store.  Raises `TensorStoreError` if nobody listens at `path`."""

    def __init__(self, path: str | Path, *, timeout: float | None = None) -> None:
        self._path = str(path)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(timeout)
        try:
            self._sock.connect(self._path)
        except OSError as error:
            self._sock.close()
            raise TensorStoreError(f"no tensor store answers: {error}", where=self._path) from error
        if not is_same_user(self._sock):  # its memory would be somebody else's
            self._sock.close()
            raise TensorStoreError("another user listens there", where=self._path)

    def load(
        self, spec: ShardSpec, on_progress: Callable[[int, int], None] | None = None
    ) -> LoadReport:
        """Have the store read what it lacks of a shard.

        `on_progress` is told bytes read and bytes to read.  Raises `TensorStoreError` with the
        reason if the weight store fails or its data is damaged.
        """
        result, _ = self._call("load", on_progress, spec=cattrs.unstructure(spec))
        return cattrs.structure(result, LoadReport)

    def retain(self, specs: Iterable[ShardSpec]) -> int:
        """Have the store drop all that none of these shards needs; returns the bytes freed.

        Engines that have mapped what is dropped keep it until they end.
        """
        result, _ = self._call("retain", specs=[cattrs.unstructure(spec) for spec in specs])
        return int(result)

    def attach(self, spec: ShardSpec) -> Attachment:
        """Map a loaded shard.  Raises `TensorStoreError` if a part of it is not loaded."""
        result, fds = self._call("attach", spec=cattrs.unstructure(spec))
        views = [cattrs.structure(view, TensorView) for view in result["tensors"]]
        segments = [Descriptor(fd, size) for fd, size in zip(fds, result["sizes"], strict=True)]
        return Attachment(result["device"], {view.name: view for view in views}, tuple(segments))

    def kv_lease(
        self, owner: str, nbytes: int, *, wait: bool = True, timeout: float | None = None
    ) -> KvLease:
        """Own `nbytes` of KV memory (rounded up to chunks) until `release` or the client's end.

        With `wait` it returns when the memory has come free; without, `KvUnavailable` says who
        owns it.  `timeout` in seconds ends the wait with `TensorStoreError`.
        """
        result, _ = self._call("kv_lease", owner=owner, bytes=nbytes, wait=wait, timeout=timeout)
        number, chunk_bytes = result["number"], result["chunk_bytes"]

        def fetch(start: int, count: int) -> list[int]:
            return self._call("kv_chunks", number=number, start=start, count=count)[1]

        size = result["chunks"] * chunk_bytes
        return KvLease(number, result["device"], size, chunk_bytes, fetch)

    def release(self, lease: KvLease) -> None:
        """Give a lease back, so that others get its memory at once.

        It must not be mapped here any more: `KvRange.close` first.
        """
        self._call("kv_release", number=lease.number)

    def stats(self) -> StoreStats:
        """How the store is."""
        result, _ = self._call("stats")
        return cattrs.structure(result, StoreStats)

    def close(self) -> None:
        """End the connection, and with it every lease; mapped weights stay mapped.

        Whoever lives on should `release` first: the store waits for a process that has not.
        """
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(
        self,
        operation: str,
        on_progress: Callable[[int, int], None] | None = None,
        /,
        **arguments: Any,
    ) -> tuple[Any, list[int]]:
        try:
            wire.send(self._sock, {"op": operation, **arguments})
            while True:
                answer, fds = wire.receive(self._sock)
                if "progress" not in answer:
                    break
                if on_progress:
                    on_progress(*answer["progress"])
        except wire.Disconnected as error:
            raise TensorStoreError(
                f"the tensor store has gone: {error}", where=self._path
            ) from error
        if "error" in answer:
            kind = KvUnavailable if answer["error"] == KvUnavailable.__name__ else TensorStoreError
            raise kind(answer["message"], where=answer["where"], remedy=answer["remedy"])
        return answer["result"], fds
