"""TLS handshakes: counted, and bounded, before a connection is one of HTTP."""

from __future__ import annotations

import asyncio
import ssl
from typing import cast

from attrs import define, field

from shuntserve_plugins.frontdoors.openai.connection import ConnectionServer, address_of
from shuntserve_plugins.frontdoors.openai.limits import Limits


@define(eq=False)
class TlsServer:
    """Makes HTTP connections of those who complete a handshake."""

    server: ConnectionServer
    context: ssl.SSLContext
    limits: Limits
    under_way: set[asyncio.Task[None]] = field(factory=set, init=False)

    def __call__(self) -> asyncio.Protocol:
        """A connection for a client that has just come."""
        return _Greeting(self)

    def begin(self, transport: asyncio.Transport) -> None:
        """Shake hands, unless too many do already."""
        full = self.server.full_for(address_of(transport))
        if full or len(self.under_way) >= self.limits.handshakes:
            transport.abort()
            return
        transport.pause_reading()  # what comes is for TLS to read
        task = asyncio.get_running_loop().create_task(self._shake(transport))
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    def close(self) -> None:
        """End the handshakes under way."""
        for task in self.under_way:
            task.cancel()

    async def _shake(self, transport: asyncio.Transport) -> None:
        connection = self.server()
        try:
            secure = await asyncio.get_running_loop().start_tls(
                transport,
                connection,
                self.context,
                server_side=True,
                ssl_handshake_timeout=self.limits.header_seconds,
            )
        except OSError:  # TLS errors and timeouts are such
            transport.abort()
            return
        except BaseException:
            transport.abort()
            raise
        if secure is None or secure.is_closing():
            transport.abort()
            return
        connection.connection_made(secure)


@define(eq=False)
class _Greeting(asyncio.Protocol):
    tls: TlsServer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self.tls.begin(cast(asyncio.Transport, transport))
