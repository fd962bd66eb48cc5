"""Waiting for somebody else, without holding pauses of this process against him."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")
_WAITS = 5


async def within(seconds: float, work: Awaitable[T]) -> T:
    """What `work` gives.  Raises `TimeoutError` if it takes longer, and cancels it.

    Waits several times in a row: a pause of this process, however long, ends only one of them, and
    what came meanwhile is read before the next is over.  So five pauses at least, with nothing read
    in between, look like silence of the other side.
    """
    task = asyncio.ensure_future(work)
    try:
        for _ in range(_WAITS):
            done, _rest = await asyncio.wait((task,), timeout=seconds / _WAITS)
            if done:
                return task.result()
        raise TimeoutError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
