"""A server in front of a real one that at some request begins to refuse."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from attrs import define, field


@define
class Refusal:
    """Requests of a method are answered so, once `after` of them were let through."""

    status: int = 403
    code: str = "AccessDenied"
    """Of the error document; with `page`, that is the body instead."""
    method: str = ""
    """Empty for any."""
    after: int = 0
    more: str = ""
    """Further elements of the error document."""
    headers: dict[str, str] = field(factory=dict)
    page: str | None = None


@define
class RefusingServer:
    """`refusal` may be changed while it runs."""

    endpoint: str = ""
    refusal: Refusal | None = None
    seen: int = 0
    refused: int = 0
    lock: threading.Lock = field(factory=threading.Lock)

    def refuses(self, method: str) -> Refusal | None:
        """What to answer to one more request."""
        with self.lock:
            rule = self.refusal
            if rule is None or rule.method not in ("", method):
                return None
            self.seen += 1
            if self.seen <= rule.after:
                return None
            self.refused += 1
            return rule


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.state = RefusingServer(f"http://127.0.0.1:{self.server_port}")

    def handle_error(self, *_: object) -> None:
        """Clients leave as they like."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):  # whatever the method
            return self.answer
        raise AttributeError(name)

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        rule = self.server.state.refuses(self.command)
        if rule is None:
            self.forward(body)
            return
        text = rule.page
        if text is None:
            inside = f"<Code>{rule.code}</Code><Message>no</Message>{rule.more}"
            text = f'<?xml version="1.0"?><Error>{inside}</Error>'
        self.send(rule.status, rule.headers, text.encode())

    def forward(self, body: bytes) -> None:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            dropped = ("transfer-encoding", "connection", "date", "server")
            kept = {k: v for k, v in answer.getheaders() if k.lower() not in dropped}
            self.send(answer.status, kept, data)

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            with contextlib.suppress(OSError):
                self.wfile.write(body)


@contextlib.contextmanager
def refusing(upstream: str = "") -> Iterator[RefusingServer]:
    """Without `upstream`, there must be a refusal for every request."""
    with _Server(upstream) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.state
        finally:
            server.shutdown()
            thread.join()
