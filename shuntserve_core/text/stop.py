"""Stop strings: text is held back for as long as it may turn out to be the start of one."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field


@define
class StopStrings:
    """Cuts a text that comes in pieces at the first stop string.

    What `feed` returns may be sent: it never holds a part of the stop string that ends the text.
    """

    stops: Sequence[str]
    include: bool = False
    """Whether the stop string itself is part of the text."""
    _held: str = field(default="", init=False)

    def feed(self, text: str) -> tuple[str, bool]:
        """Add a piece; give what is now certain, and whether a stop string was met."""
        text = self._held + text
        met = [(at, stop) for stop in self.stops if (at := text.find(stop)) >= 0]
        if met:
            # Of stop strings that begin at the same place the shorter was complete first.
            at, stop = min(met, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
            self._held = ""
            return text[: at + len(stop) if self.include else at], True
        keep = longest_overlap(text, self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, once nothing can follow."""
        text, self._held = self._held, ""
        return text


def longest_overlap(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `stops` without completing it."""
    best = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), best, -1):
            if text.endswith(stop[:length]):
                best = length
                break
    return best
