"""What clients are told of engines that end or fail with their request, and what they are not."""

from __future__ import annotations

import pytest

from shuntserve_core.runtime.suspects import Cause
from tests.core.runtime.fake_links import ALL
from tests.core.runtime.test_dispatcher import Bench

SECRET = "IndexError at 10.0.0.7:4711: what another tenant has asked"


def crash(bench: Bench, name: str, cause: Cause = Cause.CRASHED) -> None:
    bench.links.pop(name).lose(SECRET)
    bench.dispatcher.remove_pipeline(name, cause)


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (0, "no pipeline served within 5 s"),
        (1, "no pipeline served within 5 s; an engine ended while working at this request"),
        (2, "no pipeline served within 5 s; 2 engines ended while working at this request"),
    ],
)
def test_who_waits_in_vain_hears_how_many_engines_ended_with_it(losses: int, said: str) -> None:
    bench = Bench(0, queue_seconds=5.0)
    listener = bench.submit("r")
    for number in range(losses):
        bench.add(f"e{number}")
        crash(bench, f"e{number}")
    bench.clock.advance(6)
    assert (listener.outcome, listener.journal.status) == ("error", 503)
    assert listener.journal.error == said


def test_the_last_of_many_tells_how_many() -> None:
    bench = Bench(0)
    listener = bench.submit("r")
    for number in range(3):
        bench.add(f"e{number}")
        crash(bench, f"e{number}")
    assert listener.journal.error == "given up: 3 engines ended while they worked at this request"


def test_losses_of_nodes_are_not_told_as_ends_of_engines() -> None:
    bench = Bench(0, queue_seconds=5.0)
    listener = bench.submit("r")
    bench.add("e")
    crash(bench, "e", Cause.NODE)
    bench.clock.advance(6)
    assert listener.journal.error == "no pipeline served within 5 s"


def test_full_pipelines_are_not_said_to_be_none() -> None:
    bench = Bench(1, queue_seconds=5.0)
    for name in ("one", "two"):
        bench.submit(name)
    listener = bench.submit("r")
    bench.clock.advance(6)
    assert listener.journal.error == "no pipeline had room within 5 s"


def test_why_engines_fail_is_for_the_log(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(2, max_faults=1)
    listener = bench.submit("r")
    for _ in range(2):
        bench.links[bench.at("r")].say("r", 0, "error", error=SECRET)
    assert listener.journal.error == "given up: engines failed at it 2 times in a row"
    assert SECRET in caplog.text


def test_what_cannot_go_on_is_told_without_the_engines_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(0)
    first = bench.add("first", features=ALL)
    listener = bench.submit("r")
    first.say("r", 2)
    bench.add("second", features=ALL - {"resume"})
    crash(bench, "first")
    told = listener.journal.error
    assert told == (
        "no engine can go on with it, it needs resume;"
        " an engine ended while working at this request"
    )
    assert SECRET in caplog.text
