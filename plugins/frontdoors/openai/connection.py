"""One client connection: what it may cost in time, and how many there may be.

aiohttp bounds neither the time that headers take nor the time that a client takes to read; both
are bounded here.  Nor does it bound what headers take together, and it makes several objects of
each: until a request's head is complete its bytes are kept as they came, and no more than may be.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from shuntserve_plugins.frontdoors.openai.addresses import network_of
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.limits import Limits
from shuntserve_plugins.frontdoors.openai.metrics import Metrics

_log = logging.getLogger("shuntserve.frontdoor")
LINGER_SECONDS = 2.0
"""How long a body that nobody wants is read, so that the client can read why."""

_END = b"\r\n\r\n"
_METHODS = (b"GET ", b"POST ")
_LETTER = re.compile(rb"\r?\n?[A-Za-z]")
"""How a request begins, or the little that has come of it."""


def _may_be_http(head: bytes | bytearray) -> bool:
    """Whether it is worth waiting for the rest; aiohttp's parser says what is wrong with others."""
    return _LETTER.match(head) is not None or len(head) < 3


def address_of(transport: asyncio.BaseTransport) -> str:
    """The client's address, as connections are counted."""
    peer = transport.get_extra_info("peername")
    return network_of(peer[0]) if peer else ""


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connection(web.RequestHandler):
    """aiohttp's connection, with deadlines for headers and for writing."""

    __slots__ = (
        "_address",
        "_busy",
        "_head",
        "_header_timer",
        "_limits",
        "_server",
        "_write_timer",
    )

    def __init__(self, server: ConnectionServer, limits: Limits, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._limits = limits
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._address: str | None = None
        self._busy = False
        self._head: bytearray | None = bytearray()
        """What has come of a request's head; None while its body may follow."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection if there is room for another."""
        super().connection_made(transport)
        self._address = address_of(transport)
        refused = self._server.enter(self._address)
        if refused is not None:
            self._refuse(refused)
        elif self._head:  # came with the last of a TLS handshake
            early, self._head = bytes(self._head), bytearray()
            self.data_received(early)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection and its deadlines."""
        self._stop_header_timer()
        self._stop_write_timer()
        address, self._address = self._address, None
        if address is not None:
            self._server.leave(address)
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass a request's head on once it is whole; its clock starts with its first bytes."""
        head = self._head
        if head is None:
            super().data_received(data)
            return
        if self.transport is None:
            head += data
            return
        if head or not data.startswith(_METHODS) or _END not in data:
            self._start_header_timer()
            at = max(0, len(head) - len(_END) + 1)
            head += data
            end = head.find(_END, at)
            if end < 0 and len(head) <= self._limits.head_bytes and _may_be_http(head):
                return
            data = bytes(head)
        if data.find(_END, 0, self._limits.head_bytes + len(_END)) < 0 and _may_be_http(data):
            self._head = bytearray()
            self._refuse(ApiError(431, "The request line and headers are too long."))
            return
        self._head = None
        super().data_received(data)

    def request_begins(self) -> None:
        """The headers are complete."""
        self._busy = True
        self._stop_header_timer()

    def request_ends(self, *, read: bool) -> None:
        """The next bytes are those of the next request, if its body has been `read`."""
        self._busy = False
        if read:
            self._head = bytearray()

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            seconds = self._limits.header_seconds
            self._header_timer = self._loop.call_later(seconds, self._headers_late)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_late(self) -> None:
        seconds = self._limits.header_seconds
        self._refuse(ApiError(408, f"The headers did not come within {seconds:g} seconds."))

    def _refuse(self, error: ApiError) -> None:
        """Answer without a request, and close."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        body = error.body()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **error.headers,
        }
        lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        transport.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
        self.close()
        transport.close()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is sent to."""
        super().pause_writing()
        self._write_timer = self._loop.call_later(self._limits.write_seconds, self._cut)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._stop_write_timer()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _cut(self) -> None:
        self._write_timer = None
        if self.transport is not None:
            self._server.metrics.cut.inc()
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp's parser refuses, in our shape of errors."""
        self._stop_header_timer()
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun")
        if status >= 500:
            _log.error("request failed", exc_info=exc)
            error = ApiError(status, "The server had an error; it is in its log.")
        elif isinstance(exc, LineTooLong):
            error = ApiError(431, "The request line or a header is too long.")
        else:
            error = ApiError(status, "This is not an HTTP request.", code="bad_request")
        response = web.Response(
            body=error.body(), status=error.status, content_type="application/json"
        )
        response.force_close()
        return response


class ConnectionServer(web.Server):
    """Makes the connections, and counts them."""

    def __init__(self, handler: Handler, limits: Limits, metrics: Metrics) -> None:
        super().__init__(
            self._tracked,
            request_factory=self._request,
            handler_cancellation=True,
        )
        self._handler = handler
        self._limits = limits
        self.metrics = metrics
        self.open = 0
        """Connections right now."""
        self._by_address: Counter[str] = Counter()

    def __call__(self) -> web.RequestHandler:
        """A connection for a client that has just come."""
        limits = self._limits
        return Connection(
            self,
            limits,
            loop=self._loop,
            access_log=None,
            keepalive_timeout=limits.idle_seconds,
            lingering_time=LINGER_SECONDS,
            max_line_size=limits.header_bytes,
            max_field_size=limits.header_bytes,
            max_headers=limits.headers,
            auto_decompress=False,  # a small body must not become a large one
        )

    def enter(self, address: str) -> ApiError | None:
        """Count a connection in; an error to refuse it with, if there is no room for it."""
        limits = self._limits
        self.open += 1
        self._by_address[address] += 1
        self.metrics.connections.set(self.open)
        if self.open > limits.connections:
            return ApiError(503, "Too many connections.", retry_after=5)
        if self._by_address[address] > limits.connections_per_address:
            return ApiError(429, "Too many connections from this address.", retry_after=5)
        return None

    def leave(self, address: str) -> None:
        """Count a connection out."""
        self.open -= 1
        self.metrics.connections.set(self.open)
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def full_for(self, address: str) -> bool:
        """Whether a connection would be refused, before anything is spent on it."""
        limits = self._limits
        many = self._by_address.get(address, 0)
        return self.open >= limits.connections or many >= limits.connections_per_address

    async def _tracked(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.request_begins()
        try:
            return await self._handler(request)
        finally:
            connection.request_ends(read=request.content.is_eof())

    def _request(
        self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message,
            payload,
            protocol,
            writer,
            task,
            self._loop,
            client_max_size=self._limits.body_bytes,
        )
