"""Answers in one piece whose size nobody bounds, encoded and written in pieces that are.

A hundred answers with the logprobs of twenty alternatives are hundreds of megabytes.  What writes
them yields JSON a little at a time, and other streams have their turns in between.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from aiohttp import web

from shuntserve_plugins.frontdoors.openai.stream import EventStream

T = TypeVar("T")
ENTRIES = 512
"""Logprobs that are encoded at a time: half a millisecond."""
TURN_SECONDS = 0.002
"""That an answer may have of the event loop before others have their turn."""
WHOLE = 64 << 10
"""Bytes up to which an answer is written at once."""


def slices(items: Iterable[T], alternatives: int) -> Iterator[list[T]]:
    """Items that have so many alternatives each, as many at a time as are encoded at a time."""
    rest = iter(items)
    count = max(1, ENTRIES // (1 + alternatives))
    while some := list(islice(rest, count)):
        yield some


def array(lists: Iterable[bytes]) -> Iterator[bytes]:
    """One JSON array of the elements of several."""
    yield b"["
    between = b""
    for one in lists:
        if len(one) > 2:
            yield between + one[1:-1]
            between = b","
    yield b"]"


def around(shell: bytes, hole: bytes) -> tuple[bytes, bytes]:
    """What stands before and after the one place of a JSON object where it says `hole`, which is a
    name and a value: no text in it can look like that, as its quotes are escaped."""
    before, _, after = shell.partition(hole)
    return before, after


async def in_turns(pieces: Iterator[bytes]) -> list[bytes]:
    """All pieces; others have their turns while they are made."""
    made, began = [], time.perf_counter()
    for piece in pieces:
        made.append(piece)
        if time.perf_counter() - began > TURN_SECONDS:
            await asyncio.sleep(0)
            began = time.perf_counter()
    return made


class Backlog:
    """Events of a stream in their order, some of which take more than a turn of the loop."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self._queue: deque[tuple[Iterator[bytes], bytes, bool]] = deque()
        self._task: asyncio.Task[None] | None = None

    def put(self, pieces: Iterator[bytes], events: bytes, last: bool) -> None:
        """Send what `pieces` are together, and then `events`."""
        self._queue.append((pieces, events, last))
        if self._task is None:
            self._task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._queue:
            pieces, events, last = self._queue.popleft()
            events = b"".join(await in_turns(pieces)) + events
            if last:
                self._stream.end(events)
            elif events:
                self._stream.send(events)
        self._task = None

    async def done(self) -> None:
        """Until all is sent."""
        if self._task is not None:
            await self._task

    def close(self) -> None:
        """Send nothing more."""
        if self._task is not None:
            self._task.cancel()


class Pieces(web.StreamResponse):
    """A JSON response that is written piece by piece, as fast as the client reads."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        super().__init__()
        self._pieces = deque(pieces)
        self.content_type = "application/json"
        self.content_length = sum(map(len, self._pieces))

    async def write_eof(self, data: bytes = b"") -> None:
        """Write what there is."""
        while self._pieces:
            size, some = 0, []
            while self._pieces and size < WHOLE:
                some.append(self._pieces.popleft())
                size += len(some[-1])
            await self.write(b"".join(some))
        await super().write_eof(data)


def json_of(pieces: list[bytes]) -> web.StreamResponse:
    """The response that consists of these pieces."""
    if sum(map(len, pieces)) > WHOLE:
        return Pieces(pieces)
    return web.Response(body=b"".join(pieces), content_type="application/json")
