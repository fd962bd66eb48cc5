"""Frames: a big-endian uint32 length, then that many bytes of msgpack holding one array.

The first item of the array is the kind of message, a small integer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack

Message = tuple[Any, ...]

MAX_FRAME_BYTES = 16 * 2**20
"""Holds a prompt of four million tokens; nothing honest is longer."""
_PREFIX = 4


class ProtocolError(Exception):
    """The peer said something that it should not; the link cannot go on."""


def encode(message: Message, limit: int = MAX_FRAME_BYTES) -> bytes:
    """One frame.  Raises `ProtocolError` if it is over `limit` bytes or not made of plain data."""
    try:
        payload: bytes = msgpack.packb(message)
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"message cannot be encoded: {error}") from error
    if len(payload) > limit:
        raise ProtocolError(f"frame of {len(payload)} bytes is over the limit of {limit}")
    return len(payload).to_bytes(_PREFIX, "big") + payload


class FrameDecoder:
    """Messages from a row of byte chunks, however they are cut."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self.limit = limit
        """Bytes; may be raised once the peer is trusted."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Messages that are complete now.  Raises `ProtocolError` at the first malformed one."""
        buffer = self._buffer
        buffer += data
        size, position = len(buffer), 0
        try:
            while size - position >= _PREFIX:
                start = position + _PREFIX
                length = int.from_bytes(buffer[position:start], "big")
                if length > self.limit:
                    raise ProtocolError(f"frame of {length} bytes is over the limit {self.limit}")
                if start + length > size:
                    break
                position = start + length
                yield _decode(bytes(buffer[start:position]))
        finally:
            del buffer[:position]


def _decode(payload: bytes) -> Message:
    try:
        message = msgpack.unpackb(payload, use_list=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ProtocolError(f"frame is not msgpack: {type(error).__name__} {error}") from error
    if type(message) is not tuple or not message or type(message[0]) is not int:
        raise ProtocolError("frame is not an array that begins with its kind")
    return message
