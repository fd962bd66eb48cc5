"""How long a switch from one engine to its replacement took, part by part."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field

END, MEMORY, MAPPING, READY, FIRST_TOKEN, GAP = PARTS = (
    "end",
    "memory",
    "mapping",
    "ready",
    "first_token",
    "gap",
)
"""What is timed:

* `end`: from the order to move the old engine's requests until it is gone;
* `memory`: until every rank of the new one owns its KV memory, as the engine says;
* `mapping`: until that memory is in its place, as the engine says;
* `ready`: from the end of the old engine until the new one takes requests, the two above included;
* `first_token`: from the first request that it is sent until the first token of any;
* `gap`: `ready` and `first_token` together, so that a time without any request does not count.
"""


@define
class Switch:
    """One switch; `told` hears of every part as it is known."""

    told: Callable[[str, float], None]
    seconds: dict[str, float] = field(factory=dict)
    """By part."""

    def took(self, part: str, seconds: float) -> None:
        """A part is over."""
        self.seconds[part] = seconds
        self.told(part, seconds)

    def first_token(self, seconds: float) -> None:
        """The first token came: with it the whole gap is known."""
        self.took(FIRST_TOKEN, seconds)
        self.took(GAP, self.seconds.get(READY, 0.0) + seconds)
