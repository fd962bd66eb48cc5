"""An event loop on which waiting takes no time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
EPOCH = 1_000_000.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer whenever nothing is left to do."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class Clock:
    """Stands in for the module `time` in modules under test."""

    @staticmethod
    def monotonic() -> float:
        return asyncio.get_running_loop().time()

    @staticmethod
    def time() -> float:
        return EPOCH + asyncio.get_running_loop().time()


def run_virtually(work: Coroutine[Any, Any, T], patch: pytest.MonkeyPatch, modules: list[Any]) -> T:
    """Run to the end in virtual time; planning takes a virtual second and no thread."""

    async def inline(function: Any, *arguments: Any) -> Any:
        await asyncio.sleep(1.0)
        return function(*arguments)

    for module in modules:
        patch.setattr(module, "time", Clock)
    patch.setattr(asyncio, "to_thread", inline)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
