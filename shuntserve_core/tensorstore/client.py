"""The store as engines and node agents see it.

A client is one connection and blocks; it is used by one thread at a time.  From asyncio call its
methods through `asyncio.to_thread`.  Leases end when the client is closed or its process dies.
"""

from __future__ import annotations

import mmap
import os
import socket
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cattrs
from attrs import frozen

from shuntserve_core.peers import is_same_user
from shuntserve_core.tensorstore import wire
from shuntserve_core.tensorstore.memory.addresses import HostRange
from shuntserve_core.tensorstore.spec import (
    KvUnavailable,
    LoadReport,
    ShardSpec,
    StoreStats,
    TensorStoreError,
    TensorView,
)


@frozen(eq=False)
class Attachment:
    """A shard in the store's memory, mapped read-only here."""

    tensors: Mapping[str, TensorView]
    """By name."""
    segments: tuple[memoryview, ...]
    """Host memory; empty for a store on a GPU."""
    handles: tuple[bytes, ...] = ()
    """Device memory, for `tensorstore.cuda`; empty for a store in host memory."""

    def data(self, name: str) -> memoryview:
        """The bytes of one tensor, read-only.  Raises KeyError."""
        view = self.tensors[name]
        return self.segments[view.segment][view.offset : view.offset + view.nbytes]


@frozen(eq=False, weakref_slot=True)
class KvLease:
    """A part of KV memory that belongs to this client alone."""

    number: int
    offset: int
    """Bytes from the start of the region."""
    nbytes: int
    memory: memoryview
    """The part itself, writable; empty for a store on a GPU."""
    handle: bytes = b""
    _fd: int = -1

    def map_into(self, addresses: HostRange) -> None:
        """Map as much of it as the range holds, in the place of what was there."""
        addresses.map(0, self._fd, addresses.nbytes, writable=True, fd_offset=self.offset)


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
        result, _, _ = self._call("load", on_progress, spec=cattrs.unstructure(spec))
        return cattrs.structure(result, LoadReport)

    def retain(self, specs: Iterable[ShardSpec]) -> int:
        """Have the store drop all that none of these shards needs; returns the bytes freed.

        Engines that have mapped what is dropped keep it until they end.
        """
        result, _, _ = self._call("retain", specs=[cattrs.unstructure(spec) for spec in specs])
        return int(result)

    def attach(self, spec: ShardSpec) -> Attachment:
        """Map a loaded shard.  Raises `TensorStoreError` if a part of it is not loaded."""
        result, handles, fds = self._call("attach", spec=cattrs.unstructure(spec))
        views = [cattrs.structure(view, TensorView) for view in result["tensors"]]
        segments = [
            _map(fd, size, writable=False) for fd, size in zip(fds, result["sizes"], strict=False)
        ]
        return Attachment({view.name: view for view in views}, tuple(segments), tuple(handles))

    def kv_map(self) -> memoryview:
        """The whole KV region as it is now, read-only: for whoever prepares to own a part."""
        size, _, fds = self._call("kv_map")
        if not size:
            for fd in fds:
                os.close(fd)
            return memoryview(b"")
        return _map(fds[0], size, writable=False)

    def kv_lease(
        self, owner: str, nbytes: int, *, wait: bool = True, timeout: float | None = None
    ) -> KvLease:
        """Own `nbytes` of KV memory (rounded up to pages) until `release` or the client's end.

        With `wait` it returns when the memory has come free; without, `KvUnavailable` says who
        owns it.  `timeout` in seconds ends the wait with `TensorStoreError`.
        """
        result, handles, fds = self._call(
            "kv_lease", owner=owner, bytes=nbytes, wait=wait, timeout=timeout
        )
        size, offset = result["nbytes"], result["offset"]
        if not fds:
            return KvLease(result["number"], offset, size, memoryview(b""), handles[0])
        kept = os.dup(fds[0])
        memory = _map(fds[0], size, writable=True, offset=offset)
        lease = KvLease(result["number"], offset, size, memory, handles[0], kept)
        weakref.finalize(lease, os.close, kept)
        return lease

    def release(self, lease: KvLease) -> None:
        """Give a lease back.  The caller must not touch its memory any more."""
        lease.memory.release()
        self._call("kv_release", number=lease.number)

    def stats(self) -> StoreStats:
        """How the store is."""
        result, _, _ = self._call("stats")
        return cattrs.structure(result, StoreStats)

    def close(self) -> None:
        """End the connection, and with it every lease; mapped weights stay mapped."""
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
    ) -> tuple[Any, list[bytes], list[int]]:
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
        return answer["result"], answer["handles"], fds


def _map(fd: int, nbytes: int, *, writable: bool, offset: int = 0) -> memoryview:
    protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    try:
        return memoryview(mmap.mmap(fd, nbytes, prot=protection, offset=offset))
    finally:
        os.close(fd)
