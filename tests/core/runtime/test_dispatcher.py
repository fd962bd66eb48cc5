"""The dispatcher, case by case."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from shuntserve_core.interfaces.frontdoor import Refused
from shuntserve_core.interfaces.link import STANDBY
from shuntserve_core.runtime.dispatcher import TURN, Dispatcher
from shuntserve_core.types.request import EngineLoad, StepOutput, TokenLogprob
from shuntserve_plugins.balancers.plain import RoundRobin
from tests.core.runtime.fake_links import ALL, FakeClock, FakeLink, Listener, journal_of


class Durations:
    def __init__(self) -> None:
        self.stalls: list[tuple[str, float]] = []
        self.waits: list[float] = []

    def stalled(self, kind: str, seconds: float) -> None:
        self.stalls.append((kind, seconds))

    def queued(self, seconds: float) -> None:
        self.waits.append(seconds)

    def switched(self, part: str, seconds: float) -> None:
        raise AssertionError("dispatchers switch nothing")


class Bench:
    """A dispatcher with pipelines `a`, `b`..., of two requests each."""

    def __init__(self, pipelines: int = 2, **options: Any) -> None:
        self.clock = FakeClock()
        self.durations = Durations()
        self.dispatcher = Dispatcher(
            RoundRobin(), clock=self.clock, observer=self.durations, **options
        )
        self.links: dict[str, FakeLink] = {}
        for name in "abcdef"[:pipelines]:
            self.add(name)

    def add(self, name: str, capacity: int = 2, **link: Any) -> FakeLink:
        self.links[name] = FakeLink(**link)
        self.dispatcher.add_pipeline(name, self.links[name], 1.0, capacity)
        return self.links[name]

    def submit(self, name: str, **sampling: Any) -> Listener:
        journal = journal_of(name, **sampling)
        listener = Listener(journal)
        self.dispatcher.submit(journal, listener)
        return listener

    def at(self, name: str) -> str:
        """Which pipeline has a request."""
        return "".join(lane for lane, link in self.links.items() if name in link.open)

    @property
    def tokens(self) -> list[int]:
        return [p["outstanding_tokens"] for p in self.dispatcher.status()["pipelines"]]


def test_tokens_go_to_the_sink_and_counters_end_at_zero() -> None:
    bench = Bench(1)
    listener = bench.submit("r", max_tokens=5)
    assert bench.tokens == [8]
    bench.links["a"].say("r", 2)
    assert bench.tokens == [3]
    bench.links["a"].say("r", 1, "stop")
    assert (listener.tokens, listener.outcome) == ([0, 1, 2], "stop")
    assert bench.tokens == [0]
    assert bench.dispatcher.in_flight == 0
    assert bench.dispatcher.counters.finished == 1


def test_a_lost_engine_is_nothing_that_a_sink_hears_of() -> None:
    bench = Bench(2)
    listener = bench.submit("r")
    first = bench.at("r")
    bench.links[first].say("r", 3)
    stale = bench.links[first].open["r"][1]
    bench.clock.advance(1)
    bench.links[first].lose()
    second = bench.at("r")
    assert second != first
    assert bench.links[second].open["r"][0].output == (0, 1, 2)
    stale(StepOutput("r", (3,)))
    bench.clock.advance(0.25)
    bench.links[second].say("r", 2, "length")
    assert (listener.tokens, listener.outcome) == ([0, 1, 2, 3, 4], "length")
    assert bench.durations.stalls == [("unplanned", 0.25)]
    assert bench.dispatcher.counters.migrated == {"unplanned": 1}
    assert bench.dispatcher.counters.recomputed_tokens == 6


def test_the_first_token_of_a_pipeline_is_timed_from_its_first_request() -> None:
    bench, told = Bench(0), []
    link = FakeLink()
    bench.dispatcher.add_pipeline("a", link, 1.0, 2, on_first_token=told.append)
    bench.clock.advance(5)
    bench.submit("x")
    bench.clock.advance(0.2)
    bench.submit("y")
    bench.clock.advance(0.1)
    link.say("y", 1)
    link.say("x", 1)
    assert told == [pytest.approx(0.3)]


def test_migration_drains_and_carries_everything_over() -> None:
    bench = Bench(2)
    for name in "xy":
        bench.submit(name)
    moved = bench.at("x")
    bench.links[moved].say("x", 1)
    bench.dispatcher.migrate(moved)
    assert bench.at("x") == bench.at("y") != moved
    assert bench.dispatcher.counters.migrated == {"planned": 1}
    bench.submit("z")
    assert bench.at("z") == ""
    bench.dispatcher.admit_pipeline(moved)
    assert bench.at("z") == moved


def test_without_any_pipeline_requests_wait_and_resumed_ones_go_first() -> None:
    bench = Bench(1)
    old = bench.submit("old")
    bench.links["a"].say("old", 1)
    bench.links["a"].lose()
    bench.submit("new")
    bench.dispatcher.remove_pipeline("a")
    assert bench.dispatcher.waiting == 2
    link = bench.add("b", capacity=1)
    assert list(link.open) == ["old"]
    link.say("old", 1, "stop")
    assert list(link.open) == ["new"]
    assert old.tokens == [0, 1]


def test_a_pipeline_serves_once_its_engine_is_ready() -> None:
    bench = Bench(0)
    bench.submit("r")
    link = FakeLink()
    link.state = STANDBY
    bench.dispatcher.add_pipeline("a", link, 1.0, 1)
    assert not bench.dispatcher.ready
    assert not link.open
    link.announce("ready")
    assert bench.dispatcher.ready
    assert "r" in link.open


def test_waiting_has_an_end() -> None:
    bench = Bench(0, queue_seconds=30)
    listener = bench.submit("r")
    bench.clock.advance(29)
    assert listener.outcome is None
    bench.clock.advance(2)
    assert listener.outcome == "error"
    assert (listener.journal.status, listener.journal.retry_after) == (503, 30)
    assert bench.dispatcher.counters.timed_out == 1
    assert bench.dispatcher.in_flight == 0


def test_a_full_queue_refuses() -> None:
    bench = Bench(0, queue=1)
    bench.submit("a")
    with pytest.raises(Refused) as refused:
        bench.submit("b")
    assert (refused.value.status, refused.value.retry_after) == (503, 60)
    bench.add("p", capacity=1)
    bench.submit("c")
    with pytest.raises(Refused) as refused:
        bench.submit("d")
    assert (refused.value.status, refused.value.retry_after) == (429, 2)
    assert bench.dispatcher.counters.refused == 2


def test_no_queue_at_all_still_serves_while_there_is_room() -> None:
    bench = Bench(1, queue=0)
    bench.submit("a")
    bench.submit("b")
    with pytest.raises(Refused):
        bench.submit("c")


def test_what_no_engine_can_do_is_refused_and_never_queued() -> None:
    bench = Bench(0, features=frozenset({"sampling", "resume"}))
    with pytest.raises(Refused, match="guided"):
        bench.submit("r", guided={"regex": "a"})
    bench.add("a", features=ALL - {"logprobs"})
    with pytest.raises(Refused, match="logprobs") as refused:
        bench.submit("r", logprobs=1)
    assert refused.value.status == 400
    bench.submit("r", guided={"regex": "a"})
    assert bench.at("r") == "a"


def test_features_of_different_engines_do_not_add_up() -> None:
    bench = Bench(0)
    bench.add("filters", features=frozenset({"sampling", "top_k"}))
    bench.add("scores", features=frozenset({"sampling", "logprobs"}))
    bench.submit("f", top_k=5)
    bench.submit("s", logprobs=0)
    assert (bench.at("f"), bench.at("s")) == ("filters", "scores")
    with pytest.raises(Refused, match="no single engine here can do all of it") as refused:
        bench.submit("both", top_k=5, logprobs=0)
    assert refused.value.status == 400
    assert "logprobs, sampling, top_k" in refused.value.message


def test_a_request_goes_where_it_can_be_done() -> None:
    bench = Bench(0)
    bench.add("plain", features=frozenset({"sampling"}))
    bench.add("full")
    for i in range(2):
        bench.submit(f"r{i}", logprobs=0)
        assert bench.at(f"r{i}") == "full"
    bench.submit("waits", logprobs=0)
    bench.submit("passes")
    assert bench.at("waits") == ""
    assert bench.at("passes") == "plain"


def test_what_cannot_be_resumed_ends_with_an_error_and_is_counted() -> None:
    bench = Bench(0)
    bench.add("full")
    listener = bench.submit("r", logprobs=0)
    bench.links["full"].say("r", 1)
    bench.add("plain", features=frozenset({"sampling", "resume"}))
    bench.links["full"].lose()
    assert listener.outcome == "error"
    assert "logprobs" in listener.error
    assert listener.journal.status == 500
    assert bench.dispatcher.counters.resume_impossible == {"logprobs": 1}


def test_an_engine_with_less_context_is_no_candidate() -> None:
    bench = Bench(0)
    bench.add("short", max_length=100)
    bench.add("long", max_length=5000)
    for i in range(2):
        bench.submit(f"r{i}", max_tokens=500)
        assert bench.at(f"r{i}") == "long"


@pytest.mark.parametrize("ending", ["length", "stop", "context"])
def test_a_complete_output_is_finished_and_not_resumed(ending: str) -> None:
    bench = Bench(2)
    sampling = {
        "length": {"max_tokens": 3},
        "stop": {"stop_token_ids": (2,)},
        "context": {"prompt": 9_997, "max_tokens": 50},
    }[ending]
    listener = bench.submit("r", **sampling)
    first = bench.at("r")
    bench.links[first].say("r", 3)
    bench.links[first].lose()
    assert listener.outcome == ("stop" if ending == "stop" else "length")
    assert bench.at("r") == ""
    assert listener.journal.attempts == 1


def test_engine_errors_are_tried_elsewhere_and_open_the_circuit() -> None:
    bench = Bench(2)
    for i in range(3):
        listener = bench.submit(f"r{i}")
        bench.links["a"].say(f"r{i}", finish="error", error="out of memory")
        assert bench.at(f"r{i}") == "b"
        bench.links["b"].say(f"r{i}", 1, "stop")
        assert listener.outcome == "stop"
    assert bench.dispatcher.counters.circuits_opened == 1
    assert bench.dispatcher.status()["pipelines"][0]["circuit"] == "open"
    bench.submit("x")
    bench.submit("y")
    assert bench.at("x") == bench.at("y") == "b"
    bench.clock.advance(5)
    bench.submit("trial")
    bench.submit("second")
    assert bench.at("trial") == "a"
    assert bench.at("second") == ""
    bench.links["a"].say("trial", 1)
    bench.submit("third")
    assert bench.at("second") == "a"


def test_a_request_that_an_engine_failed_goes_back_there_only_if_it_must() -> None:
    bench = Bench(2)
    bench.submit("r")
    bench.submit("other")
    assert (bench.at("r"), bench.at("other")) == ("a", "b")
    bench.links["a"].say("r", finish="error", error="out of memory")
    assert bench.at("r") == "b"  # although it is the other one's turn
    bench.links["b"].say("r", finish="error", error="out of memory")
    assert bench.at("r") == "a"
    bench.dispatcher.remove_pipeline("b")
    bench.links["a"].say("r", finish="error", error="out of memory")
    assert bench.at("r") == "a"


def test_a_clients_mistake_opens_no_circuit_and_is_not_tried_again() -> None:
    bench = Bench(2)
    for i in range(5):
        listener = bench.submit(f"r{i}")
        name = bench.at(f"r{i}")
        bench.links[name].say(f"r{i}", finish="error", error="too long", bad_request=True)
        assert listener.outcome == "error"
        assert listener.journal.status == 400
    assert bench.dispatcher.counters.circuits_opened == 0
    assert bench.dispatcher.counters.migrated == {}


def test_what_cannot_be_sent_is_refused_or_failed() -> None:
    bench = Bench(1)
    bench.links["a"].refuses = True
    with pytest.raises(Refused) as refused:
        bench.submit("now")
    assert refused.value.status == 400
    assert bench.dispatcher.in_flight == 0
    bench.dispatcher.drain_pipeline("a")
    listener = bench.submit("later")
    bench.dispatcher.admit_pipeline("a")
    assert listener.outcome == "error"
    assert listener.journal.status == 400


def test_cancelling_aborts_and_makes_room() -> None:
    bench = Bench(1)
    for name in ("x", "y", "z"):
        bench.submit(name)
    bench.dispatcher.cancel("x")
    bench.dispatcher.cancel("unknown")
    assert set(bench.links["a"].open) == {"y", "z"}
    assert bench.dispatcher.counters.cancelled == 1
    bench.submit("w")
    bench.dispatcher.cancel("w")
    assert bench.dispatcher.waiting == 0


def test_a_sink_may_cancel_and_submit_while_it_is_told() -> None:
    bench = Bench(1)

    class Busy(Listener):
        def on_output(self, output: StepOutput) -> None:
            super().on_output(output)
            bench.dispatcher.cancel(self.journal.id)
            self.cancelled = True
            bench.submit("next")

    journal = journal_of("r")
    bench.dispatcher.submit(journal, Busy(journal))
    bench.links["a"].say("r", 1)
    assert set(bench.links["a"].open) == {"next"}
    assert bench.dispatcher.counters.cancelled == 1


def test_a_sink_that_fails_costs_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(1)

    class Broken:
        def on_output(self, output: StepOutput) -> None:
            raise RuntimeError("a bug above")

    bench.dispatcher.submit(journal_of("r"), Broken())
    bench.links["a"].say("r", 1)
    bench.links["a"].say("r", 1, "stop")
    assert "a bug above" in caplog.text
    assert bench.dispatcher.in_flight == 0


def test_a_finished_id_may_be_used_again_but_not_a_live_one() -> None:
    bench = Bench(1)
    bench.submit("r")
    with pytest.raises(Refused, match="in use"):
        bench.submit("r")
    assert bench.at("r") == "a"
    bench.links["a"].say("r", 1, "stop")
    bench.submit("r")
    assert bench.at("r") == "a"


def test_starting_over_repeats_no_token_to_the_sink() -> None:
    bench = Bench(2)
    bench.dispatcher.keep_tokens = False
    listener = bench.submit("r")
    first = bench.at("r")
    bench.links[first].say("r", 3)
    bench.dispatcher.migrate(first)
    second = bench.links[bench.at("r")]
    assert second.open["r"][0].output == ()
    for _ in range(3):
        second.say("r", 2)
    second.say("r", 1, "length")
    assert listener.tokens == list(range(7))
    assert bench.dispatcher.counters.recomputed_tokens == 3 + 3


def of(bench: Bench, tenant: str, name: str, weight: float = 1.0, **sampling: Any) -> Listener:
    journal = journal_of(name, **sampling)
    journal.tenant, journal.weight = tenant, weight
    listener = Listener(journal)
    bench.dispatcher.submit(journal, listener)
    return listener


def running(bench: Bench) -> list[str]:
    return sorted(name for link in bench.links.values() for name in link.open)


def test_a_tenant_without_a_slot_gets_one_of_whoever_has_more_than_its_share() -> None:
    bench = Bench(2)
    hog = [of(bench, "hog", f"h{number}") for number in range(6)]
    bench.links[bench.at("h0")].say("h0", 5)
    assert running(bench) == ["h0", "h1", "h2", "h3"]
    of(bench, "late", "l0", max_tokens=1)
    assert "l0" in running(bench)
    assert "h0" in running(bench)  # the others had less to lose
    assert bench.dispatcher.counters.preempted == 1
    bench.links[bench.at("l0")].say("l0", 1, "length")
    assert running(bench) == ["h0", "h1", "h2", "h3"]
    assert hog[0].tokens == [0, 1, 2, 3, 4]


def test_who_gave_way_goes_on_from_its_tokens() -> None:
    bench = Bench(1)
    first, second = of(bench, "hog", "h0"), of(bench, "hog", "h1")
    for name in ("h0", "h1"):
        bench.links["a"].say(name, 3)
    stale = bench.links["a"].open["h0"][1]
    of(bench, "late", "l0")
    gone = next(name for name in ("h0", "h1") if not bench.at(name))
    stale(StepOutput("h0", (77,)))
    bench.clock.advance(2)
    bench.links["a"].say("l0", 1, "stop")
    assert bench.links["a"].open[gone][0].output == (0, 1, 2)
    for name, listener in (("h0", first), ("h1", second)):
        bench.links["a"].say(name, 2, "length")
        assert (listener.tokens, listener.outcome) == ([0, 1, 2, 3, 4], "length")
    assert ("preempted", 2.0) in bench.durations.stalls


def test_slots_end_up_divided_by_weight() -> None:
    bench = Bench(1)
    bench.links.clear()
    bench.dispatcher.remove_pipeline("a")
    bench.add("b", capacity=8)
    for number in range(20):
        of(bench, "one", f"o{number}")
    for number in range(20):
        of(bench, "three", f"t{number}", weight=3.0)
    have = [name[0] for name in running(bench)]
    assert (have.count("o"), have.count("t")) == (2, 6)


def test_nobody_gives_way_where_it_could_not_go_on() -> None:
    bench = Bench(0)
    bench.add("a", features=ALL - {"resume"})
    for number in range(3):
        of(bench, "hog", f"h{number}", temperature=0)
    for name in ("h0", "h1"):
        bench.links["a"].say(name, 1)
    of(bench, "late", "l0", temperature=0)
    assert running(bench) == ["h0", "h1"]
    bench.links["a"].say("h0", 1, "stop")
    assert "l0" in running(bench)


def test_every_tenant_has_a_waiting_room_of_its_own() -> None:
    bench = Bench(1, queue=3)
    for number in range(5):
        of(bench, "hog", f"h{number}")
    with pytest.raises(Refused, match="full"):
        of(bench, "hog", "h5")
    of(bench, "late", "l0")
    assert "l0" in running(bench)


def test_who_gave_way_is_not_ended_while_its_tenant_is_served() -> None:
    bench = Bench(1, queue_seconds=10)
    listeners = [of(bench, "hog", f"h{number}") for number in range(2)]
    of(bench, "late", "l0")
    bench.clock.advance(100)
    assert [listener.outcome for listener in listeners] == [None, None]
    for name in running(bench):
        if name != "l0":
            bench.links["a"].say(name, 1, "stop")
    assert len([name for name in running(bench) if name[0] == "h"]) == 1


def test_counts_of_engines_never_go_down() -> None:
    bench = Bench(0)

    def engine(name: str, engine_id: str, load: EngineLoad) -> FakeLink:
        link = bench.add(name)
        link.info, link.load = evolve(link.info, engine_id=engine_id), load
        return link

    engine("a", "one", EngineLoad(2, 1, 0.5, 9, preemptions=3, prefix_queries=10, prefix_hits=4))
    b = engine("b", "two", EngineLoad(1, 0, 0.1, 9, preemptions=1, prefix_queries=5))
    status = bench.dispatcher.status()
    assert status["engines"] == {
        "running": 3,
        "waiting": 1,
        "kv_used": 0.3,
        "preemptions": 4,
        "prefix_queries": 15,
        "prefix_hits": 4,
    }
    assert status["pipelines"][0]["engine"]["preemptions"] == 3
    bench.dispatcher.remove_pipeline("a")
    b.load = EngineLoad(0, 0, 0.2, 9, preemptions=2, prefix_queries=6)
    engine("c", "three", EngineLoad(prefix_queries=1))
    assert bench.dispatcher.status()["engines"]["preemptions"] == 5
    assert bench.dispatcher.status()["engines"]["prefix_queries"] == 17
    # The first engine comes back, over a link of its own: what it counted is counted once.
    engine("d", "one", EngineLoad(preemptions=4, prefix_queries=10))
    assert bench.dispatcher.status()["engines"]["preemptions"] == 6


def test_how_long_a_request_waited_for_its_first_engine() -> None:
    bench = Bench(0)
    listener = bench.submit("r", max_tokens=5)
    assert listener.journal.waited is None
    bench.clock.advance(3.0)
    bench.add("a")
    assert listener.journal.waited == 3.0
    bench.add("b")
    bench.clock.advance(2.0)
    bench.dispatcher.migrate("a")
    assert bench.at("r") == "b"
    assert listener.journal.waited == 3.0


def scores(*tokens: int) -> list[TokenLogprob]:
    return [TokenLogprob(-float(token)) for token in tokens]


def test_logprobs_of_a_prompt_are_told_once_over_several_engines() -> None:
    bench = Bench(2, features=ALL | {"prompt_logprobs"})
    for link in bench.links.values():
        link.info = evolve(link.info, features=ALL | {"prompt_logprobs"})
    listener = bench.submit("r", max_tokens=5, prompt=4, prompt_logprobs=1)
    first, second = bench.links["a"], bench.links["b"]
    assert first.open["r"][0].sampling.prompt_logprobs == 1
    first.say("r", prompt_logprobs=scores(1, 2))
    first.lose()
    # Those that came are not lost; the next engine tells all, as it must compute them anyway.
    assert second.open["r"][0].sampling.prompt_logprobs == 1
    second.say("r", prompt_logprobs=scores(1))
    second.say("r", 1, prompt_logprobs=scores(2, 3))
    assert listener.journal.prompt_logprobs == scores(1, 2, 3)
    third = bench.add("c")
    bench.dispatcher.migrate("b")
    # An engine that cannot do it is good enough now.
    assert third.open["r"][0].sampling.prompt_logprobs is None
    third.say("r", 4, "length")
    assert (listener.tokens, listener.outcome) == ([0, 1, 2, 3, 4], "length")
    assert listener.journal.prompt_logprobs == scores(1, 2, 3)


def test_logprobs_of_a_prompt_need_an_engine_that_can() -> None:
    bench = Bench(1)
    with pytest.raises(Refused, match="prompt_logprobs"):
        bench.submit("r", max_tokens=5, prompt_logprobs=0)


def test_long_requests_leave_the_queue_over_several_turns_of_the_loop() -> None:
    bench = Bench(0)
    listeners = []
    for number in range(20):
        journal = evolve(journal_of(f"r{number}", max_tokens=1), prompt=tuple(range(TURN // 4)))
        listeners.append(Listener(journal))
        bench.dispatcher.submit(journal, listeners[-1])
    link = bench.add("a", capacity=18, max_length=TURN)
    sent = [len(link.open)]
    while len(link.open) > sent[-1] or len(sent) == 1:
        sent.append(len(link.open))
        bench.clock.advance(0.0)
    assert sent[0] == 4
    assert list(link.open) == [f"r{number}" for number in range(18)]
    assert bench.dispatcher.waiting == 2
    link.say("r0", 1, "length")
    bench.clock.advance(0.0)
    assert "r18" in link.open
    short = bench.submit("short", max_tokens=1)
    link.say("r1", 1, "length")
    link.say("r2", 1, "length")
    bench.clock.advance(0.0)
    link.say("short", 1, "length")
    assert short.outcome == "length"


def test_a_lost_engine_with_long_requests_is_left_over_several_turns() -> None:
    bench = Bench(0)
    first = bench.add("a", capacity=20, max_length=TURN)
    for number in range(20):
        journal = evolve(journal_of(f"r{number}", max_tokens=1), prompt=tuple(range(TURN // 4)))
        bench.dispatcher.submit(journal, Listener(journal))
    assert len(first.open) == 20
    second = bench.add("b", capacity=20, max_length=TURN)
    first.lose()
    assert 0 < len(second.open) <= 5
    bench.clock.advance(0.0)
    assert len(second.open) == 20
    assert bench.dispatcher.waiting == 0
