"""What both ends of a link share: framing, limits, and ending with a reason."""

from __future__ import annotations

import asyncio
import socket
from abc import abstractmethod
from typing import cast

from attrs import field, frozen
from attrs.validators import ge, gt

from shuntserve_core.link import messages as m
from shuntserve_core.link.frames import (
    MAX_FRAME_BYTES,
    FrameDecoder,
    Message,
    ProtocolError,
    encode,
)
from shuntserve_core.link.handshake import HANDSHAKE_BYTES

_PROBES = 4
"""Questions to a host without an answer, before it counts as gone."""


@frozen
class LinkPolicy:
    """When a peer counts as dead, and how much may pile up for it.

    The defaults notice a hung engine within a second.  Silence is counted in heartbeats, not in
    wall time, so a pause of this process is never held against the peer.
    """

    interval: float = field(default=0.13, validator=gt(0))
    """Seconds between heartbeats."""
    missed: int = field(default=5, validator=ge(1))
    """Heartbeats in a row without a word from an engine that serves, before it counts as dead."""
    missed_while_starting: int = field(default=200, validator=ge(1))
    """The same for one that does not serve yet: reading weights may keep it from answering."""
    client_silence: float = field(default=600.0, validator=gt(0))
    """Seconds that an engine waits for a silent client: a control plane that pauses is not dead,
    and what runs for it is worth keeping.  One that is killed is noticed at once, its successor
    takes its place, and a host that is gone is noticed by `host_silence`."""
    host_silence: float = field(default=30.0, validator=ge(1))
    """Seconds without an answer from the peer's host, which answers for its processes whether
    or not they pause."""
    write_buffer: int = field(default=8 * 2**20, validator=ge(1))
    """Bytes that may wait for a peer that does not read, before it is cut."""
    handshake: float = field(default=5.0, validator=gt(0))
    """Seconds for the handshake."""


def watch_host(sock: socket.socket, seconds: float) -> None:
    """Have the kernel end a connection whose other host does not answer for so long."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    probe = max(1, int(seconds / (_PROBES + 1)))
    for name, value in (
        ("TCP_KEEPIDLE", probe),
        ("TCP_KEEPINTVL", probe),
        ("TCP_KEEPCNT", _PROBES),
    ):
        if hasattr(socket, name):  # not every system has each of them
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Connection(asyncio.Protocol):
    """One end.  Subclasses handle messages and hear of the end."""

    def __init__(self, policy: LinkPolicy) -> None:
        self.policy = policy
        self.heard = True
        """Whether bytes came since somebody last reset this."""
        self.ended: str | None = None
        """Why the connection is over."""
        self.gone = asyncio.Event()
        """Set when the transport has written its last byte."""
        self._decoder = FrameDecoder(HANDSHAKE_BYTES)
        self._transport: asyncio.Transport | None = None

    @abstractmethod
    def on_message(self, message: Message) -> None:
        """Handle a message; may raise `ProtocolError`."""

    @abstractmethod
    def on_end(self, reason: str) -> None:
        """The connection is over: called exactly once."""

    def trust(self) -> None:
        """The peer has proved itself: allow large frames."""
        self._decoder.limit = MAX_FRAME_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; small frames must leave at once."""
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            watch_host(sock, self.policy.host_silence)

    def data_received(self, data: bytes) -> None:
        """Handle every message that is complete."""
        self.heard = True
        if self.ended is not None:
            return
        try:
            for message in self._decoder.feed(data):
                if message[0] == m.GOODBYE:
                    self.cut(f"the peer said: {m.text_of(message)}")
                else:
                    self.on_message(message)
                if self._over():
                    return
        except ProtocolError as error:
            self.dismiss(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        """The transport is gone."""
        self.gone.set()
        self._end(f"connection lost: {exc}" if exc else "connection closed by the peer")

    def send(self, message: Message) -> None:
        """Write a message; does nothing once ended.  Raises `ProtocolError` if it is too long."""
        self.send_frame(encode(message))

    def send_frame(self, frame: bytes) -> None:
        """Write a frame; cuts a peer that does not read.  Does nothing once ended."""
        transport = self._transport
        if self.ended is not None or transport is None:
            return
        transport.write(frame)
        if transport.get_write_buffer_size() > self.policy.write_buffer:
            self.cut(f"the peer does not read: {transport.get_write_buffer_size()} bytes wait")

    def dismiss(self, reason: str) -> None:
        """Tell the peer why, then end."""
        transport = self._transport
        if self.ended is None and transport is not None:
            self.send((m.GOODBYE, reason[:500]))
        if self.ended is None and transport is not None:
            transport.close()
            # A peer that reads nothing would keep the closing socket for ever.
            asyncio.get_running_loop().call_later(1.0, transport.abort)
        self._end(reason)

    def cut(self, reason: str) -> None:
        """End at once; whatever waits to be written is lost."""
        if self._transport is not None:
            self._transport.abort()
        self._end(reason)

    def _over(self) -> bool:
        return self.ended is not None

    def _end(self, reason: str) -> None:
        if self.ended is None:
            self.ended = reason
            self.on_end(reason)
