"""Stop strings: text is held back for as long as it may turn out to be the start of one."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field


@define
class _Automaton:
    """How much of one stop string the text read so far ends with.

    The classic table of Knuth, Morris and Pratt (1977): whatever the text is, a letter costs a
    constant time on average.  Libraries of such automata tell matches, but not how far into a
    string the text has come, which is what has to be held back.
    """

    stop: str
    _back: list[int] = field(init=False)
    """For every length of a beginning: the longest shorter beginning that it ends with."""

    def __attrs_post_init__(self) -> None:
        stop = self.stop
        back, length = [0, 0], 0
        for letter in stop[1:]:
            while length and letter != stop[length]:
                length = back[length]
            length += letter == stop[length]
            back.append(length)
        self._back = back

    def step(self, length: int, letter: str) -> int:
        """The length after one more letter; the stop string's own once it is complete."""
        stop, back = self.stop, self._back
        while length and letter != stop[length]:
            length = back[length]
        return length + (letter == stop[length])


class StopSet:
    """The stop strings of a request, prepared once for all its answers."""

    __slots__ = ("automata", "begins", "include")

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """`include` says whether the stop string itself is part of the text."""
        self.automata = tuple(map(_Automaton, stops))
        self.begins = frozenset(stop[0] for stop in stops)
        self.include = include


class StopStrings:
    """Cuts a text that comes in pieces at the first stop string.

    What `feed` returns may be sent: it never holds a part of the stop string that ends the text.
    """

    __slots__ = ("_held", "_lengths", "_set")

    def __init__(self, stops: StopSet) -> None:
        self._set = stops
        self._held = ""
        self._lengths = [0] * len(stops.automata)

    def feed(self, text: str) -> tuple[str, bool]:
        """Add a piece; give what is now certain, and whether a stop string was met."""
        stops = self._set
        if not self._held and stops.begins.isdisjoint(text):
            return text, False
        for at, letter in enumerate(text, start=1):
            # Of stop strings that end at the same place the longer begins first.
            met = self._step(letter)
            if met:
                whole = self._held + text[:at]
                self._held = ""
                return whole if stops.include else whole[: len(whole) - met], True
        whole, keep = self._held + text, max(self._lengths)
        self._held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep], False

    def _step(self, letter: str) -> int:
        """Read a letter; the length of the stop string that it completes, else 0."""
        met, lengths = 0, self._lengths
        for index, automaton in enumerate(self._set.automata):
            length = lengths[index] = automaton.step(lengths[index], letter)
            if length == len(automaton.stop):
                met = max(met, length)
        return met

    def flush(self) -> str:
        """What was held back, once nothing can follow."""
        text, self._held = self._held, ""
        return text
