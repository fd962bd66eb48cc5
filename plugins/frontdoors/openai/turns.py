"""Work on the event loop that grows with a request, in pieces: others have their turns between."""

from __future__ import annotations

import asyncio

from attrs import define, field

TOKENS = 1 << 15
"""Of prompts, that are handled in one turn: some 2 ms."""


@define
class Turns:
    """Counts what one request has done in this turn of the loop."""

    most: int = TOKENS
    _spent: int = field(default=0, init=False)

    async def spend(self, amount: int) -> None:
        """So much is to be done; waits for the next turn where that is too much for this one."""
        if self._spent and self._spent + amount > self.most:
            self._spent = 0
            await asyncio.sleep(0)
        self._spent += amount
