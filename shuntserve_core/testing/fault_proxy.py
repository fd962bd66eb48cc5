"""A server between a client and a real one, that does to answers what networks do."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from attrs import define, field

REFUSAL = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"
_NOT_FORWARDED = ("connection", "transfer-encoding", "content-length", "keep-alive")


@define
class Fault:
    """Something to go wrong, the next `times` times that a request fits."""

    kind: str
    """`refuse` (503), `reset`, `truncate`, `stall`, `corrupt` (a flipped byte), `ignore-range`, or
    `lose-answer` (carried out, then reset)."""
    times: int = 1
    method: str = "GET"
    least_bytes: int = 1000
    """Only answers with at least so long a body, but for `refuse` and `lose-answer`."""


@define(eq=False)
class FaultProxy:
    """A proxy that runs, and what it is to do to the next requests."""

    endpoint: str
    faults: list[Fault] = field(factory=list)
    happened: list[str] = field(factory=list)
    """Kinds of the faults that took place."""
    _lock: threading.Lock = field(factory=threading.Lock)

    def take(self, method: str, body_bytes: int | None) -> str:
        """The fault for a request; empty for none.  `body_bytes` is None before there is one."""
        early = ("refuse", "ignore-range", "lose-answer")
        with self._lock:
            for fault in self.faults:
                if fault.times < 1 or fault.method != method:
                    continue
                if (fault.kind in early) != (body_bytes is None):
                    continue
                if body_bytes is not None and body_bytes < fault.least_bytes:
                    continue
                fault.times -= 1
                self.happened.append(fault.kind)
                return fault.kind
        return ""


@contextlib.contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy in front of the server at `upstream` (`http://host:port`)."""
    stopped = threading.Event()

    class Handler(_Handler):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        proxy = FaultProxy(f"http://127.0.0.1:{server.server_port}")
        Handler.proxy, Handler.upstream, Handler.stopped = proxy, urlsplit(upstream).netloc, stopped
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            stopped.set()
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy
    upstream: str
    stopped: threading.Event

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        early = self.proxy.take(self.command, None)
        if early == "refuse":
            self._answer(503, {"Content-Type": "application/xml"}, REFUSAL)
            return
        status, headers, data = self._forward(body, drop_range=early == "ignore-range")
        if early == "lose-answer":
            self._reset()
            return
        fault = self.proxy.take(self.command, len(data))
        if fault == "corrupt":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        self._answer(status, headers, data, cut=len(data) // 2 if fault else None, fault=fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - the base class's names

    def _forward(self, body: bytes, *, drop_range: bool) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        dropped = ("range", "connection", "expect") if drop_range else ("connection", "expect")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in _NOT_FORWARDED}
            if self.command == "HEAD":
                kept["Content-Length"] = answer.getheader("Content-Length") or "0"
            return answer.status, kept, data
        finally:
            connection.close()

    def _answer(
        self,
        status: int,
        headers: dict[str, str],
        data: bytes,
        *,
        cut: int | None = None,
        fault: str = "",
    ) -> None:
        with contextlib.suppress(ConnectionError):
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if fault in ("", "corrupt"):
                self.wfile.write(data)
                return
            self.wfile.write(data[:cut])
            self.wfile.flush()
        self.close_connection = True
        if fault == "stall":
            self.stopped.wait(60)
        if fault == "reset":
            self._reset()

    def _reset(self) -> None:
        """Close with RST instead of FIN."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
