"""The process: one thread a connection, and a lease ends with the connection that holds it."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import cattrs

from shuntserve_core.errors import UserError
from shuntserve_core.peers import is_same_user
from shuntserve_core.registry import Registry
from shuntserve_core.tensorstore import wire
from shuntserve_core.tensorstore.leases import KvLeases, Ticket
from shuntserve_core.tensorstore.memory import Loan, Memory
from shuntserve_core.tensorstore.shards import Shards
from shuntserve_core.tensorstore.spec import ShardSpec, StoreStats, TensorStoreError

PROGRESS_SECONDS = 0.1
"""Least time between two messages of progress."""


class StoreServer:
    """Weights and KV memory of one GPU rank, behind a Unix socket that only its user may open."""

    def __init__(self, path: Path, memory: Memory, registry: Registry, kv_bytes: int = 0) -> None:
        self.path = path
        self.memory = memory
        self.shards = Shards(memory, registry)
        self.region = memory.region()
        self.leases = KvLeases(
            capacity=kv_bytes, on_grow=self.region.resize, on_free=self.region.discard
        )
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
            threading.Thread(target=_Session(self, connection).run, daemon=True).start()

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
            kv_capacity=self.leases.capacity,
            leases=self.leases.owned(),
            waiting=self.leases.waiting(),
            rss=_resident_bytes(),
        )


class _Session:
    """One connection.  Requests are answered in order."""

    def __init__(self, server: StoreServer, sock: socket.socket) -> None:
        self._server, self._sock = server, sock
        self._tickets: set[int] = set()
        self._operations: Mapping[str, Callable[[dict[str, Any]], None]] = {
            "load": self._load,
            "retain": self._retain,
            "attach": self._attach,
            "kv_map": self._kv_map,
            "kv_lease": self._kv_lease,
            "kv_release": self._kv_release,
            "stats": self._stats,
        }

    def run(self) -> None:
        """Answer until the other side has gone, then free what it owned."""
        try:
            while True:
                request, fds = wire.receive(self._sock)
                for fd in fds:  # nobody has reason to send us any
                    os.close(fd)
                self._answer(request)
        except wire.Disconnected:
            pass
        finally:
            for number in self._tickets:
                self._server.leases.release(number)
            self._sock.close()

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

    def _reply(self, result: Any, loans: list[Loan] | None = None) -> None:
        fds = [loan.fd for loan in loans or () if loan.fd >= 0]
        handles = [loan.handle for loan in loans or ()]
        try:
            wire.send(self._sock, {"result": result, "handles": handles}, fds)
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
        views, sizes, loans = self._server.shards.attach(_spec(request["spec"]))
        self._reply({"tensors": cattrs.unstructure(views), "sizes": sizes}, loans)

    def _kv_map(self, request: dict[str, Any]) -> None:
        loan = self._server.region.lend(writable=False)
        self._reply(self._server.leases.capacity, [loan])

    def _kv_lease(self, request: dict[str, Any]) -> None:
        owner, nbytes = str(request["owner"]), int(request["bytes"])
        if request["wait"]:
            ticket = self._wait_for_lease(owner, nbytes, request.get("timeout"))
        else:
            ticket = self._server.leases.ask(owner, nbytes)
            self._tickets.add(ticket.number)
        result = {"number": ticket.number, "offset": ticket.offset, "nbytes": ticket.nbytes}
        self._reply(result, [self._server.region.lend(writable=True)])

    def _wait_for_lease(self, owner: str, nbytes: int, timeout: float | None) -> Ticket:
        """Wait for the grant, for the end of the asker, or for the time to pass."""
        grants: list[Ticket] = []
        bell = os.eventfd(0, os.EFD_CLOEXEC)

        def granted(ticket: Ticket) -> None:
            grants.append(ticket)
            os.eventfd_write(bell, 1)

        ticket = self._server.leases.ask(owner, nbytes, granted)
        self._tickets.add(ticket.number)
        try:
            if ticket.offset >= 0:
                return ticket
            if self._readable(bell, timeout):
                return grants[0]
        finally:
            if ticket.offset < 0 and not grants:
                self._server.leases.release(ticket.number)
            os.close(bell)
        raise TensorStoreError(f"no KV memory came free within {timeout} s", where=owner)

    def _readable(self, bell: int, timeout: float | None) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(bell, selectors.EVENT_READ)
            selector.register(self._sock, selectors.EVENT_READ)
            ready = {key.fd for key, _ in selector.select(timeout)}
        if bell not in ready and ready:
            # A client that waits says nothing, so this is its end (or a breach of the protocol).
            raise wire.Disconnected("the client went while it waited for KV memory")
        return bool(ready)

    def _kv_release(self, request: dict[str, Any]) -> None:
        number = int(request["number"])
        if number not in self._tickets:
            raise TensorStoreError("this connection has no such lease", where=str(number))
        self._tickets.discard(number)
        self._server.leases.release(number)
        self._reply(None)

    def _stats(self, request: dict[str, Any]) -> None:
        self._reply(cattrs.unstructure(self._server.stats()))


def _spec(data: Any) -> ShardSpec:
    return cattrs.structure(data, ShardSpec)


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if path.is_socket() and probe.connect_ex(str(path)) == 0:
            raise UserError("another tensor store listens there", where=str(path))
    path.unlink(missing_ok=True)
    umask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        raise UserError(f"cannot listen: {error}", where=str(path)) from error
    finally:
        os.umask(umask)
    listener.listen(64)
    return listener


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
