"""Requests that make engines end, and those that were there with them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.interfaces.balancer import Candidate
from shuntserve_core.runtime.dispatcher import KILLS_ENGINES, UNEXPLAINED_SECONDS, Dispatcher
from shuntserve_core.runtime.suspects import Cause
from tests.core.runtime.fake_links import ALL, Listener, journal_of
from tests.core.runtime.test_dispatcher import Bench


def crash(bench: Bench, name: str, cause: Cause = Cause.CRASHED) -> None:
    """As a cluster manager sees it: the link first, then the reason."""
    bench.links.pop(name).lose()
    bench.dispatcher.remove_pipeline(name, Cause.UNKNOWN)
    bench.dispatcher.explain(name, cause)


def submit_group(bench: Bench, group: str, number: int) -> list[Listener]:
    listeners = []
    for index in range(number):
        journal = journal_of(f"{group}-{index}")
        journal.group = group
        listeners.append(Listener(journal))
        bench.dispatcher.submit(journal, listeners[-1])
    return listeners


@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_a_request_that_kills_engines_is_given_up_whatever_it_produced(tokens: int) -> None:
    bench = Bench(0)
    listener = bench.submit("pill")
    for number in range(3):
        assert listener.outcome is None
        link = bench.add(f"e{number}")
        if tokens:
            link.say("pill", tokens)
        crash(bench, f"e{number}")
    assert listener.outcome == "error"
    assert len(listener.tokens) == 3 * tokens
    journal = listener.journal
    assert (journal.status, journal.code, journal.retry_after) == (500, KILLS_ENGINES, None)
    assert bench.dispatcher.counters.given_up == 1
    assert bench.dispatcher.in_flight == 0


@pytest.mark.parametrize("cause", [Cause.NODE, Cause.ORDERED])
def test_losses_that_are_not_the_engines_own_do_not_count(cause: Cause) -> None:
    bench = Bench(0)
    listener = bench.submit("r")
    for number in range(8):
        bench.add(f"e{number}")
        crash(bench, f"e{number}", cause)
    for number in range(8):
        bench.add(f"m{number}")
        bench.dispatcher.migrate(f"m{number}")
        bench.dispatcher.remove_pipeline(f"m{number}")
        del bench.links[f"m{number}"]
    bench.add("last")
    bench.links["last"].say("r", 1, "stop")
    assert listener.outcome == "stop"


def test_nobody_is_given_up_before_the_cause_of_the_last_loss_is_known() -> None:
    bench = Bench(0)
    listener = bench.submit("r")
    for number in range(2):
        bench.add(f"e{number}")
        crash(bench, f"e{number}")
    bench.add("e2").lose()
    bench.dispatcher.remove_pipeline("e2", Cause.UNKNOWN)
    bench.add("e3")
    assert bench.at("r") == ""
    assert listener.outcome is None
    bench.dispatcher.explain("e2", Cause.NODE)
    assert bench.at("r") == "e3"
    bench.links["e3"].lose()  # and nobody ever says why
    bench.clock.advance(UNEXPLAINED_SECONDS - 1)
    assert listener.outcome is None
    bench.clock.advance(2)
    assert listener.journal.code == KILLS_ENGINES


def test_a_loss_that_turns_out_to_be_a_nodes_is_taken_back() -> None:
    bench = Bench(0)
    listener = bench.submit("r")
    for number in range(2):
        bench.add(f"e{number}")
        crash(bench, f"e{number}")
    bench.dispatcher.explain("e1", Cause.NODE)
    bench.dispatcher.explain("e1", Cause.CRASHED)
    bench.add("e2")
    crash(bench, "e2")
    assert listener.outcome is None


def test_a_suspect_runs_alone_and_others_make_way() -> None:
    bench = Bench(0)
    bench.submit("pill")
    for number in range(2):
        bench.add(f"e{number}")
        crash(bench, f"e{number}")
    bench.add("a", capacity=4)
    assert bench.at("pill") == "a"
    bench.submit("r")
    assert bench.at("r") == ""
    bench.add("b", capacity=4)
    assert bench.at("r") == "b"
    crash(bench, "a")
    bench.submit("s")
    assert (bench.at("r"), bench.at("s")) == ("b", "b")


def test_what_has_a_place_elsewhere_moves_from_the_pipeline_that_is_kept_free() -> None:
    bench = Bench(0)
    moved = bench.add("a", capacity=1)
    listener = bench.submit("r")
    moved.say("r", 3)
    bench.submit("pill")
    for number in range(2):
        bench.add(f"e{number}", capacity=1)
        crash(bench, f"e{number}")
    assert (bench.at("r"), bench.at("pill")) == ("a", "")
    bench.submit("s")
    assert bench.at("s") == ""  # the only pipeline is kept for the suspect
    bench.add("b", capacity=2)
    assert (bench.at("r"), bench.at("s"), bench.at("pill")) == ("b", "b", "a")
    bench.links["b"].say("r", 2, "stop")
    assert listener.tokens == [0, 1, 2, 3, 4]


def test_an_empty_pipeline_is_better_than_one_that_must_be_emptied() -> None:
    bench = Bench(0)
    bench.add("a", capacity=1)
    bench.submit("r")
    bench.submit("pill")
    for number in range(2):
        bench.add(f"e{number}", capacity=1)
        crash(bench, f"e{number}")
    bench.add("b", capacity=1)
    assert (bench.at("r"), bench.at("pill")) == ("a", "b")


def test_on_the_only_pipeline_others_finish_first_and_new_ones_wait() -> None:
    bench = Bench(0)
    pill = bench.submit("pill")
    for number in range(2):
        bench.add(f"e{number}", capacity=1)
        crash(bench, f"e{number}")
    bench.submit("r")
    bench.add("a", capacity=2)
    bench.clock.advance(1000)
    bench.submit("later")
    assert (bench.at("r"), bench.at("pill"), bench.at("later")) == ("a", "", "")
    bench.links["a"].say("r", 1, "stop")
    assert bench.at("pill") == "a"
    assert bench.at("later") == ""
    assert pill.outcome is None
    bench.links["a"].say("pill", 1, "stop")
    assert pill.outcome == "stop"
    assert bench.dispatcher.status()["pipelines"][0]["kept_for"] == ""


def test_choices_of_one_request_are_one_suspect() -> None:
    bench = Bench(0)
    listeners = submit_group(bench, "pill", 4)
    lost = 0
    while any(listener.outcome is None for listener in listeners):
        bench.add(f"e{lost}", capacity=4)
        crash(bench, f"e{lost}")
        lost += 1
        assert lost <= 3
    assert lost == 3
    assert {listener.journal.code for listener in listeners} == {KILLS_ENGINES}


def test_choices_elsewhere_are_called_back_to_run_alone() -> None:
    bench = Bench(0)
    bench.add("a", capacity=1)
    bench.add("b", capacity=1)
    bench.add("c", capacity=4)
    submit_group(bench, "pill", 3)
    bench.submit("r")
    bench.submit("s")
    assert bench.at("pill-2") == bench.at("r") == bench.at("s") == "c"
    bench.links["c"].say("pill-2", 4)
    crash(bench, "a")
    crash(bench, "b")
    assert [bench.at(f"pill-{index}") for index in range(3)] == ["", "", ""]
    for name in "rs":
        bench.links["c"].say(name, 1, "stop")
    assert [bench.at(f"pill-{index}") for index in range(3)] == ["c", "c", "c"]
    assert bench.links["c"].open["pill-2"][0].output == (0, 1, 2, 3)


def test_nobody_is_given_up_for_a_loss_in_company() -> None:
    """One that cannot be called back is there at a third loss with others."""
    bench = Bench(0)
    bench.add("a", capacity=1)
    bench.add("b", capacity=1)
    bench.add("c", capacity=4, features=ALL - {"resume"})
    listeners = submit_group(bench, "pill", 3)
    innocent = bench.submit("r")
    assert bench.at("pill-2") == bench.at("r") == "c"
    bench.links["c"].say("pill-2", 1)
    for name in "abc":
        crash(bench, name)
    assert [listener.outcome for listener in listeners] == [None] * 3
    bench.add("d", capacity=4)
    while innocent.outcome is None:
        bench.links["d"].say("r", 1, "stop")
    crash(bench, "d")
    assert {listener.journal.code for listener in listeners} == {KILLS_ENGINES}


def test_those_that_were_there_together_are_spread_over_what_is_left() -> None:
    class First:
        def pick(self, candidates: Sequence[Candidate]) -> str:
            return candidates[0].name

        def forget(self, name: str) -> None:
            """Nothing to forget."""

    bench = Bench(0)
    bench.dispatcher = Dispatcher(First(), clock=bench.clock)
    bench.add("a", capacity=8)
    for number in range(6):
        bench.submit(f"r{number}")
    bench.add("b", capacity=8)
    bench.add("c", capacity=8)
    crash(bench, "a")
    assert [len(bench.links[name].open) for name in "bc"] == [3, 3]


def test_the_log_says_what_it_was_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(0)
    journal = journal_of("pill", guided={"regex": "secret"}, temperature=0.25, logit_bias={7: 1.0})
    journal.prompt, journal.tenant = (31337, 31338), "team"
    bench.dispatcher.submit(journal, Listener(journal))
    with caplog.at_level(logging.ERROR):
        for number in range(3):
            bench.add(f"e{number}").say("pill", 1)
            crash(bench, f"e{number}")
    line = next(record.getMessage() for record in caplog.records if "given up" in record.message)
    for part in (
        "'pill'",
        "'team'",
        "2 tokens of prompt",
        "3 of output",
        "0.25",
        "regex",
        "e0",
        "e2",
    ):
        assert part in line
    for secret in ("secret", "31337", "31338"):
        assert secret not in line


@define
class Trial:
    """Engines that end a while after a pill is on them, and everything else that can happen."""

    bench: Bench
    pills: frozenset[str]
    lanes: int
    capacity: int
    number: int = 0
    steps: dict[str, int] = field(factory=dict)
    losses: dict[str, int] = field(factory=dict)
    lost: int = 0

    def supply(self) -> None:
        while len(self.bench.links) < self.lanes:
            self.number += 1
            self.bench.add(f"e{self.number}", capacity=self.capacity)

    def lose(self, name: str, cause: Cause, late: bool) -> None:
        pills = [request for request in self.bench.links[name].open if request in self.pills]
        if cause is Cause.CRASHED:
            self.lost += 1
            for pill in pills:
                self.losses[pill] = self.losses.get(pill, 0) + 1
        if late:
            self.bench.links.pop(name).lose()
            self.bench.dispatcher.remove_pipeline(name, Cause.UNKNOWN)
            self.supply()
            self.bench.dispatcher.explain(name, cause)
        else:
            self.bench.dispatcher.remove_pipeline(name, cause)
            self.bench.links.pop(name).lose()

    def step(self, fuse: int) -> None:
        """One token for everybody; engines end whose pill has had `fuse` of them there."""
        for name, link in list(self.bench.links.items()):
            for request in list(link.open):
                if request in link.open:
                    done = link.made[request] + 1 >= link.open[request][0].sampling.max_tokens
                    link.say(request, 1, "length" if done else None)
            burnt = [
                request
                for request, (sent, _) in link.open.items()
                if request in self.pills and link.made[request] - len(sent.output) >= fuse
            ]
            if burnt and name in self.bench.links:
                self.lose(name, Cause.CRASHED, late=bool(fuse % 2))


@settings(max_examples=150, deadline=None)
@given(
    requests=st.integers(1, 14),
    pills=st.integers(0, 3),
    lanes=st.integers(1, 4),
    capacity=st.integers(1, 8),
    fuse=st.integers(1, 3),
    accidents=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([Cause.NODE, Cause.ORDERED]), st.booleans()),
        max_size=30,
    ),
)
def test_pills_are_given_up_within_the_limit_and_innocents_always_complete(
    requests: int,
    pills: int,
    lanes: int,
    capacity: int,
    fuse: int,
    accidents: list[tuple[int, Cause, bool]],
) -> None:
    bench = Bench(0, queue_seconds=1e6)
    names = [f"r{number}" for number in range(requests)]
    guilty = frozenset(names[:: max(requests // max(pills, 1), 1)][:pills])
    trial = Trial(bench, guilty, lanes, capacity)
    trial.supply()
    listeners = {
        name: bench.submit(name, max_tokens=1000 if name in guilty else 12) for name in names
    }
    for turn in range(1500):
        if not bench.dispatcher.in_flight:
            break
        trial.supply()
        if turn < len(accidents):
            which, cause, late = accidents[turn]
            trial.lose(list(bench.links)[which % len(bench.links)], cause, late)
            trial.supply()
        trial.step(fuse)
        bench.clock.advance(0.1)
    assert bench.dispatcher.in_flight == 0
    for name, listener in listeners.items():
        if name in guilty:
            assert listener.journal.code == KILLS_ENGINES
            assert trial.losses[name] <= 3
        else:
            assert listener.outcome == "length"
            assert len(listener.tokens) == 12
    assert trial.lost <= 3 * len(guilty)
