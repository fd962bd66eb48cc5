from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.text import StopStrings

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
    found, whole, met = StopStrings(tuple(stops), include), "".join(pieces), False
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
    stops = StopStrings(("END",))
    assert stops.feed("text E") == ("text ", False)
    assert stops.feed("N") == ("", False)
    assert stops.feed("O") == ("ENO", False)
    assert stops.feed("xEND and more") == ("x", True)
