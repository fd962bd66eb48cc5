"""One client connection: what it may cost in time, and how many there may be.

aiohttp bounds neither the time that headers take nor the time that a client takes to read; both
are bounded here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.limits import Limits
from shuntserve_plugins.frontdoors.openai.metrics import Metrics

_log = logging.getLogger("shuntserve.frontdoor")
LINGER_SECONDS = 2.0
"""How long a body that nobody wants is read, so that the client can read why."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connection(web.RequestHandler):
    """aiohttp's connection, with deadlines for headers and for writing."""

    __slots__ = ("_busy", "_counted", "_header_timer", "_limits", "_server", "_write_timer")

    def __init__(self, server: ConnectionServer, limits: Limits, **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        self._limits = limits
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._counted = False
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection if there is room for another."""
        super().connection_made(transport)
        self._counted = True
        self._server.count(1)
        if self._server.open > self._limits.connections:
            self._refuse(ApiError(503, "Too many connections.", retry_after=5))

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection and its deadlines."""
        self._stop_header_timer()
        self._stop_write_timer()
        if self._counted:
            self._counted = False
            self._server.count(-1)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the clock of a request's headers with their first bytes."""
        if self._header_timer is None and not self._busy:
            self._header_timer = self._loop.call_later(
                self._limits.header_seconds, self._headers_late
            )
        super().data_received(data)

    def request_begins(self) -> None:
        """The headers are complete."""
        self._busy = True
        self._stop_header_timer()

    def request_ends(self) -> None:
        """The next bytes are those of the next request."""
        self._busy = False

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

    def count(self, change: int) -> None:
        """Count a connection in or out."""
        self.open += change
        self.metrics.connections.set(self.open)

    async def _tracked(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.request_begins()
        try:
            return await self._handler(request)
        finally:
            connection.request_ends()

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
