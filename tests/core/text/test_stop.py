from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.text import StopSet, StopStrings

LETTERS = st.text("ab\n", max_size=12)


@given(
    pieces=st.lists(LETTERS, max_size=8),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4),
    include=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_cuts_where_the_first_stop_string_is_complete(
    pieces: list[str], stops: list[str], include: bool
) -> None:
    """As if the text had come letter by letter."""
    found, whole, met = StopStrings(StopSet(stops, include)), "".join(pieces), False
    sent = []
    for piece in pieces:
        text, met = found.feed(piece)
        sent.append(text)
        if met:
            break
    if not met:
        sent.append(found.flush())
    ends = [
        (end, start)
        for end in range(1, len(whole) + 1)
        for stop in stops
        if (start := end - len(stop)) >= 0 and whole[start:end] == stop
    ]
    assert met == bool(ends)
    end, start = min(ends, default=(len(whole), len(whole)))
    assert "".join(sent) == whole[: end if include else start]


def test_holds_back_no_more_than_needed() -> None:
    stops = StopStrings(StopSet(("END",)))
    assert stops.feed("text E") == ("text ", False)
    assert stops.feed("N") == ("", False)
    assert stops.feed("O") == ("ENO", False)
    assert stops.feed("xEND and more") == ("x", True)


def test_the_cost_of_a_letter_does_not_grow_with_the_stop_strings() -> None:
    """Counted in comparisons: text that nearly is a stop string, over and over."""
    compared = 0

    class Letter(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        def __ne__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__ne__(self, other)

    class Text(str):
        __slots__ = ()

        def __iter__(self) -> Iterator[str]:
            return map(Letter, str.__iter__(self))

    stops = [letters * 511 + "x" for letters in ("aa", "ab", "ba", "bb")]
    found = StopStrings(StopSet(stops))
    text = "ab" * 400 + "aab" * 400
    sent = "".join(found.feed(Text(text[at : at + 4]))[0] for at in range(0, len(text), 4))
    assert sent + found.flush() == text
    assert len(text) * len(stops) < compared < 3 * len(text) * len(stops)
