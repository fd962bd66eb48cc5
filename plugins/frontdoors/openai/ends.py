"""How generations are ended from outside: all at once, or each when it has taken too long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from attrs import define, field

from shuntserve_plugins.frontdoors.openai.errors import ApiError

End = Callable[[ApiError], None]


@define(eq=False)
class Ends:
    """The enders of generations under way, with one timer for all: all may take equally long, so
    they are late in the order in which they began."""

    seconds: float
    """That each may take."""
    _due: dict[End, float] = field(factory=dict, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)

    def __len__(self) -> int:
        """Generations under way."""
        return len(self._due)

    def __iter__(self) -> Iterator[End]:
        """All of them, as they are now."""
        return iter(tuple(self._due))

    def add(self, end: End) -> None:
        """One begins."""
        loop = asyncio.get_running_loop()
        self._due[end] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._look)

    def discard(self, end: End) -> None:
        """One is over, if it was not before."""
        self._due.pop(end, None)

    def _look(self) -> None:
        """End those that are late, and look again when the next one may be."""
        loop, self._timer = asyncio.get_running_loop(), None
        while self._due:
            end, due = next(iter(self._due.items()))
            left = due - loop.time()
            if left > 0:
                self._timer = loop.call_later(left, self._look)
                return
            self.discard(end)
            text = f"The request took more than {self.seconds:g} seconds."
            end(ApiError(408, text, code="timeout"))
