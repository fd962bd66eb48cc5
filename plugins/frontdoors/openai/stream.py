"""Server-sent events, written straight to the socket.

A stream is one HTTP response in chunked coding.  No task or queue stands between an engine's step
and the socket; where a stream has several answers, what comes of them within one turn of the event
loop leaves in one write.  The response's head leaves with the first event, or with a comment where
none comes for a while, so that what fails before is an ordinary error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

DONE = b"data: [DONE]\n\n"
_COMMENT = b": waiting\n\n"
"""Ignored by every reader of events; proxies cut connections on which nothing comes."""
_LAST_CHUNK = b"0\r\n\r\n"


class EventStream(web.StreamResponse):
    """A response of events; `send` from any callback on the loop, then `end` once."""

    def __init__(
        self,
        request: web.BaseRequest,
        headers: Mapping[str, str],
        silence: float = 0.0,
        *,
        gather: bool = False,
    ) -> None:
        """After `silence` seconds without an event a comment is sent; 0 sends none.

        With `gather` events wait for others that come in the same turn of the loop, and all of
        them until `release` is called.
        """
        super().__init__(headers=headers)
        self._transport = request.transport
        self._loop = asyncio.get_running_loop()
        self._chunked_coding = request.version >= HttpVersion11
        self._gather = self._held = gather
        self._pending: list[bytes] = []
        """Gathered, and not written yet."""
        self.started = False
        """Whether anything was written."""
        self.ended = False
        self._silence = silence
        self._sent_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._watch(silence)
        self._keep_alive = request.keep_alive and self._chunked_coding

    def send(self, events: bytes) -> None:
        """Write whole events, at the latest at the end of this turn of the loop."""
        if not self._gather:
            self._write(events)
            return
        if not self._pending and not self._held:
            self._loop.call_soon(self._flush)
        self._pending.append(events)

    def release(self) -> None:
        """Every answer is under way: from now on nothing is refused any more."""
        self._held = False
        self._flush()

    def _watch(self, seconds: float) -> None:
        """Look after so many seconds whether anything was sent: one timer, however many events."""
        if self._silence:
            self._timer = self._loop.call_later(seconds, self._on_timer)

    def _on_timer(self) -> None:
        transport = self._transport
        if self.ended or transport is None or transport.is_closing():
            return
        left = self._sent_at + self._silence - self._loop.time()
        if left <= 0:
            if not transport.get_write_buffer_size():  # else the client has enough to read
                self.send(_COMMENT)
            left = self._silence
        self._watch(left)

    def close(self) -> None:
        """Send no more comments; whoever opened it closes it, whatever came of it."""
        if self._timer is not None:
            self._timer.cancel()

    def end(self, events: bytes = b"") -> None:
        """Send the last events and complete the response."""
        self.ended = True
        self.send(events)

    def _flush(self) -> None:
        if self._pending:  # else `write_eof` was first
            events = b"".join(self._pending)
            self._pending.clear()
            self._write(events)

    def _write(self, events: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._chunked_coding:
            framed = b"%x\r\n%b\r\n" % (len(events), events) if events else b""
            events = framed + _LAST_CHUNK if self.ended else framed
        if not self.started:
            self.started = True
            events = self._head() + events
        self._sent_at = self._loop.time()
        transport.write(events)

    def _head(self) -> bytes:
        lines = [
            f"HTTP/1.1 {HTTPStatus.OK.value} OK",
            "Content-Type: text/event-stream; charset=utf-8",
            "Cache-Control: no-cache",
            "X-Accel-Buffering: no",
            *(f"{name}: {value}" for name, value in self.headers.items()),
            "Transfer-Encoding: chunked" if self._chunked_coding else "Connection: close",
        ]
        if self._chunked_coding and not self._keep_alive:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Nothing is left to prepare: the head leaves with the first events."""
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Make sure that the last events are with the transport before the next request."""
        self._flush()

    @property
    def prepared(self) -> bool:
        """Whether the head is out."""
        return self.started
