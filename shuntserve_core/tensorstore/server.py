"""The process: one thread a connection, and a lease ends with the connection that holds it.

It ends in one of two ways.  A live engine unmaps the memory, having waited for the device to be
done with it, and says so (`kv_release`).  Or the connection ends, and the memory is lent on when
the process has exited; `peer` says how that is known, and `_Session._leave` what if it is not.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import cattrs

from shuntserve_core.errors import UserError
from shuntserve_core.peers import is_same_user
from shuntserve_core.registry import Registry
from shuntserve_core.tensorstore import wire
from shuntserve_core.tensorstore.chunks import Chunks
from shuntserve_core.tensorstore.leases import KvLeases, Ticket
from shuntserve_core.tensorstore.memory import Memory, OutOfMemory
from shuntserve_core.tensorstore.peer import Peer
from shuntserve_core.tensorstore.shards import Shards
from shuntserve_core.tensorstore.spec import (
    MemoryStats,
    ShardSpec,
    StoreStats,
    TensorStoreError,
)

PROGRESS_SECONDS = 0.1
"""Least time between two messages of progress."""

DYING_SECONDS = 10.0
"""How long a process may take to exit once its connection has ended."""

RETRY_SECONDS = 0.05
"""Between two tries to get memory that is on its way back to the device."""

log = logging.getLogger(__name__)


class StoreServer:
    """Weights and KV memory of one GPU rank, behind a Unix socket that only its user may open."""

    def __init__(
        self,
        path: Path,
        memory: Memory,
        registry: Registry,
        kv_bytes: int = 0,
        *,
        dying_seconds: float = DYING_SECONDS,
    ) -> None:
        self.path, self.dying_seconds = path, dying_seconds
        self.memory = memory
        self.chunks = Chunks(memory)
        self.leases = KvLeases(memory.kv_chunk_bytes, -(-kv_bytes // memory.kv_chunk_bytes))
        self.shards = Shards(memory, registry, self._make_room if not kv_bytes else lambda: 0)
        self.chunks.back(range(self.leases.capacity))
        self._listener = _listen(path)

    def serve(self) -> None:
        """Accept connections until `close`."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not is_same_user(connection):
                connection.close()
                continue
            session = _Session(self, connection, Peer(connection))
            threading.Thread(target=session.run, daemon=True).start()

    def close(self) -> None:
        """Stop accepting, and remove the socket."""
        with suppress(FileNotFoundError):
            self.path.unlink()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def stats(self) -> StoreStats:
        """How the store is."""
        return StoreStats(
            pid=os.getpid(),
            device=self.memory.device,
            weight_bytes=self.shards.weight_bytes,
            tensors=self.shards.tensors,
            bytes_read=self.shards.bytes_read,
            kv_capacity=self.leases.capacity * self.leases.chunk_bytes,
            leases=self.leases.owned(),
            waiting=self.leases.waiting(),
            memory=self._memory_stats(),
            rss=_resident_bytes(),
        )

    def take_back(self, number: int, *, clean: bool) -> None:
        """End a lease that is leaving; if it was not left clean, nobody gets its memory again."""
        chunks = self.leases.leave(number)
        if clean:
            try:
                self.chunks.zero(chunks)
            except Exception:
                log.exception("KV memory cannot be emptied; it is not used any more")
                clean = False
        if not clean:
            self.chunks.abandon(chunks)
        self.leases.release(number)

    def _make_room(self) -> int:
        """Give KV memory that nobody owns back to the device; returns the bytes."""
        return self.leases.with_free(self.chunks.abandon)

    def _memory_stats(self) -> MemoryStats:
        room = self.memory.room()
        return MemoryStats(
            weights=self.shards.allocated_bytes,
            kv=self.chunks.nbytes,
            allocated=self.memory.allocated_bytes,
            staging=self.memory.staging_bytes,
            device_free=room.free if room else None,
            device_total=room.total if room else None,
        )


class _Session:
    """One connection.  Requests are answered in order."""

    def __init__(self, server: StoreServer, sock: socket.socket, peer: Peer) -> None:
        self._server, self._sock, self._peer = server, sock, peer
        self._tickets: dict[int, Ticket] = {}
        self._operations: Mapping[str, Callable[[dict[str, Any]], None]] = {
            "load": self._load,
            "retain": self._retain,
            "attach": self._attach,
            "kv_lease": self._kv_lease,
            "kv_chunks": self._kv_chunks,
            "kv_release": self._kv_release,
            "stats": self._stats,
        }

    def run(self) -> None:
        """Answer until the other side has gone, then free what it owned."""
        try:
            while self._peer.wait_for_message():
                request, fds = wire.receive(self._sock)
                for fd in fds:  # nobody has reason to send us any
                    os.close(fd)
                self._answer(request)
        except wire.Disconnected:
            pass
        finally:
            self._leave()
            self._peer.close()
            self._sock.close()

    def _leave(self) -> None:
        """Free what it owned, once the process that may have it mapped has exited.

        This thread waits, and no other.  A process that lives on, or of which nothing is known,
        keeps its memory: the store stops holding it, and makes new memory for the next owner.
        """
        numbers = [number for number in self._tickets if self._server.leases.leave(number)]
        if not numbers:
            return
        gone = self._peer.gone(self._server.dying_seconds)
        if not gone:
            owners = ", ".join(sorted({self._tickets[number].owner for number in numbers}))
            log.warning(
                "process %d left without releasing the KV memory of %s, and it or a child of it is"
                " not known to have exited within %g s: its memory is not lent again",
                self._peer.pid,
                owners,
                self._server.dying_seconds,
            )
        for number in numbers:
            self._server.take_back(number, clean=gone)

    def _answer(self, request: Any) -> None:
        try:
            self._operations[request.pop("op")](request)
        except UserError as error:
            kind = type(error).__name__
            self._error(kind, error.message, error.where, error.remedy)
        except wire.Disconnected:
            raise
        except Exception as error:  # reported to who asked; the store must go on
            self._error("TensorStoreError", f"{type(error).__name__}: {error}", "tensor store", "")

    def _error(self, kind: str, message: str, where: str, remedy: str) -> None:
        wire.send(self._sock, {"error": kind, "message": message, "where": where, "remedy": remedy})

    def _reply(self, result: Any, fds: Sequence[int] = ()) -> None:
        try:
            wire.send(self._sock, {"result": result}, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _load(self, request: dict[str, Any]) -> None:
        told = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told >= PROGRESS_SECONDS or done == total:
                told = now
                # The load goes on without its asker: the next one finds the tensors there.
                with suppress(wire.Disconnected):
                    wire.send(self._sock, {"progress": [done, total]})

        report = self._server.shards.load(_spec(request["spec"]), progress)
        self._reply(cattrs.unstructure(report))

    def _retain(self, request: dict[str, Any]) -> None:
        self._reply(self._server.shards.retain([_spec(one) for one in request["specs"]]))

    def _attach(self, request: dict[str, Any]) -> None:
        views, sizes, fds = self._server.shards.attach(_spec(request["spec"]))
        device = self._server.memory.device
        self._reply({"device": device, "tensors": cattrs.unstructure(views), "sizes": sizes}, fds)

    def _kv_lease(self, request: dict[str, Any]) -> None:
        owner, nbytes = str(request["owner"]), int(request["bytes"])
        deadline = None
        if request["wait"]:
            timeout = request.get("timeout")
            deadline = time.monotonic() + (math.inf if timeout is None else timeout)
            ticket = self._wait_for_lease(owner, nbytes, deadline)
        else:
            ticket = self._server.leases.ask(owner, nbytes)
        self._tickets[ticket.number] = ticket
        self._back(ticket, deadline)
        memory = self._server.memory
        result = {"number": ticket.number, "chunks": ticket.count, "device": memory.device}
        self._reply({**result, "chunk_bytes": memory.kv_chunk_bytes})

    def _wait_for_lease(self, owner: str, nbytes: int, deadline: float) -> Ticket:
        """Wait for the grant, for the end of the asker, or for the time to pass."""
        grants: list[Ticket] = []
        bell = os.eventfd(0, os.EFD_CLOEXEC)

        def granted(ticket: Ticket) -> None:
            grants.append(ticket)
            os.eventfd_write(bell, 1)

        ticket = self._server.leases.ask(owner, nbytes, granted)
        try:
            if ticket.granted:
                return ticket
            if not self._rings(bell, deadline):
                raise TensorStoreError("no KV memory came free in time", where=owner)
            return grants[0]
        except BaseException:
            self._server.leases.release(ticket.number)  # from now on nobody rings
            raise
        finally:
            os.close(bell)

    def _rings(self, bell: int, deadline: float) -> bool:
        seconds = max(0.0, deadline - time.monotonic())
        ready = self._peer.wait_beside(bell, None if math.isinf(seconds) else seconds)
        if bell not in ready and ready:
            # A client that waits says nothing, so this is its end (or a breach of the protocol).
            raise wire.Disconnected("the client went while it waited for KV memory")
        return bool(ready)

    def _back(self, ticket: Ticket, deadline: float | None) -> None:
        """Have memory behind a granted lease.

        What its last owner had may be on its way back to the device, so a lease that may wait
        waits for it, but not for ever: then there is something else in the memory's place.
        """
        patience = time.monotonic() + self._server.dying_seconds
        while True:
            try:
                self._server.chunks.back(ticket.chunks)
                return
            except OutOfMemory:
                if deadline is None or time.monotonic() > min(deadline, patience):
                    del self._tickets[ticket.number]
                    self._server.take_back(ticket.number, clean=True)
                    raise
            if self._peer.wait_beside(-1, RETRY_SECONDS):
                raise wire.Disconnected("the client went while it waited for KV memory")

    def _kv_chunks(self, request: dict[str, Any]) -> None:
        ticket = self._ticket(request)
        start, count = int(request["start"]), int(request["count"])
        chunks = ticket.chunks[start : start + count]
        self._reply(len(chunks), self._server.chunks.lend(chunks))

    def _kv_release(self, request: dict[str, Any]) -> None:
        ticket = self._ticket(request)
        del self._tickets[ticket.number]
        self._server.take_back(ticket.number, clean=True)
        self._reply(None)

    def _ticket(self, request: dict[str, Any]) -> Ticket:
        number = int(request["number"])
        if number not in self._tickets:
            raise TensorStoreError("this connection has no such lease", where=str(number))
        return self._tickets[number]

    def _stats(self, request: dict[str, Any]) -> None:
        self._reply(cattrs.unstructure(self._server.stats()))


def _spec(data: Any) -> ShardSpec:
    return cattrs.structure(data, ShardSpec)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if path.is_socket() and probe.connect_ex(str(path)) == 0:
            raise UserError(
                "another tensor store listens there",
                where=str(path),
                remedy="stop it, or give another --socket",
            )
    path.unlink(missing_ok=True)
    umask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        raise UserError(
            f"cannot listen: {error}",
            where=str(path),
            remedy="give --socket in a folder that this user may write to",
        ) from error
    finally:
        os.umask(umask)
    listener.listen(64)
    return listener


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
