"""Whatever happens in whatever order: no token lost or repeated, every outcome told once, and
counters equal to the truth."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from shuntserve_core.interfaces.frontdoor import Refused
from shuntserve_core.interfaces.link import STANDBY
from shuntserve_core.runtime.dispatcher import Dispatcher
from shuntserve_core.runtime.suspects import Cause
from shuntserve_core.types.request import StepOutput
from shuntserve_plugins.balancers.outstanding import LeastOutstanding
from shuntserve_plugins.balancers.plain import RoundRobin
from shuntserve_plugins.balancers.weighted import WeightedRoundRobin
from tests.core.runtime.fake_links import ALL, FakeClock, FakeLink, Listener, journal_of

BALANCERS = (WeightedRoundRobin, LeastOutstanding, RoundRobin)
FEATURES = st.sampled_from([ALL, ALL - {"logprobs"}, ALL - {"resume"}])


class Machine(RuleBasedStateMachine):
    pipelines = Bundle("pipelines")
    keep_tokens = True

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.dispatcher: Dispatcher | None = None
        self.links: dict[str, FakeLink] = {}
        self.capacity: dict[str, int] = {}
        self.listeners: dict[str, Listener] = {}
        self.refused = 0

    @precondition(lambda self: self.dispatcher is None)
    @rule(balancer=st.sampled_from(BALANCERS), queue=st.integers(0, 6))
    def start(self, balancer: Any, queue: int) -> None:
        self.queue = queue
        self.dispatcher = Dispatcher(
            balancer(), clock=self.clock, queue=queue, queue_seconds=20, max_faults=2
        )
        self.dispatcher.keep_tokens = self.keep_tokens

    started = precondition(lambda self: self.dispatcher is not None)

    @started
    @rule(
        target=pipelines,
        capacity=st.integers(1, 4),
        throughput=st.floats(0, 5),
        features=FEATURES,
        ready=st.booleans(),
    )
    def add(self, capacity: int, throughput: float, features: frozenset[str], ready: bool) -> Any:
        if sum(link.lost is None for link in self.links.values()) >= 4:
            return multiple()
        name = f"p{len(self.links)}"
        link = FakeLink(features)
        if not ready:
            link.state = STANDBY
        self.links[name], self.capacity[name] = link, capacity
        self.dispatcher.add_pipeline(name, link, throughput, capacity)
        return name

    @started
    @rule(
        max_tokens=st.integers(1, 12),
        logprobs=st.sampled_from([None, None, 0]),
        stop=st.sampled_from([(), (), (3,)]),
        tenant=st.sampled_from(["", "a", "b"]),
    )
    def submit(
        self, max_tokens: int, logprobs: int | None, stop: tuple[int, ...], tenant: str
    ) -> None:
        name = f"r{len(self.listeners)}"
        journal = journal_of(name, max_tokens, logprobs=logprobs, stop_token_ids=stop)
        journal.tenant, journal.weight = tenant, 2.0 if tenant == "b" else 1.0
        listener = Listener(journal)
        try:
            self.dispatcher.submit(journal, listener)
        except Refused:
            self.refused += 1
        else:
            self.listeners[name] = listener

    def _pick(self, data: Any, what: str) -> tuple[FakeLink, str] | None:
        running = [(link, name) for link in self.links.values() for name in link.open]
        return data.draw(st.sampled_from(running), what) if running else None

    @started
    @rule(data=st.data(), tokens=st.integers(1, 3), error=st.sampled_from(["", "", "", "e", "bad"]))
    def step(self, data: Any, tokens: int, error: str) -> None:
        picked = self._pick(data, "request that gets tokens")
        if picked is None:
            return
        link, name = picked
        if error:
            link.say(name, finish="error", error=error, bad_request=error == "bad")
            return
        sampling = link.open[name][0].sampling
        stops = bool(sampling.stop_token_ids) and sampling.max_tokens >= 4
        end = 4 if stops else sampling.max_tokens
        left = end - link.made[name]
        if tokens < left:
            link.say(name, tokens)
            return
        # An engine may die between its last token and its word that it was the last.
        reason = "stop" if stops else "length"
        link.say(name, left, data.draw(st.sampled_from([reason, None])) if left else reason)

    @started
    @rule(data=st.data())
    def late_words(self, data: Any) -> None:
        left = [entry for link in self.links.values() for entry in link.left]
        if left:
            name, on_output = data.draw(st.sampled_from(left))
            finish = data.draw(st.sampled_from([None, "stop", "error"]))
            on_output(StepOutput(name, (77,), finish=finish))

    @started
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        if self.listeners:
            name = data.draw(st.sampled_from(sorted(self.listeners)))
            listener = self.listeners[name]
            listener.cancelled = listener.outcome is None
            self.dispatcher.cancel(name)

    @started
    @rule(name=pipelines)
    def lose(self, name: str) -> None:
        self.links[name].lose()

    @started
    @rule(name=pipelines, cause=st.sampled_from(Cause))
    def explain(self, name: str, cause: Cause) -> None:
        if self.links[name].lost is not None:
            self.dispatcher.explain(name, cause)

    @started
    @rule(name=consumes(pipelines), cause=st.sampled_from(Cause))
    def fail(self, name: str, cause: Cause) -> None:
        self.dispatcher.remove_pipeline(name, cause)
        self.links[name].lose()

    @started
    @rule(name=pipelines, what=st.sampled_from(["drain_pipeline", "admit_pipeline", "migrate"]))
    def manage(self, name: str, what: str) -> None:
        getattr(self.dispatcher, what)(name)

    @started
    @rule(name=consumes(pipelines))
    def remove(self, name: str) -> None:
        self.dispatcher.remove_pipeline(name)
        self.links[name].lose()

    @started
    @rule(name=pipelines)
    def get_ready(self, name: str) -> None:
        if self.links[name].lost is None:
            self.links[name].announce("ready")

    @started
    @rule(seconds=st.sampled_from([0.1, 3.0, 6.0, 25.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def counters_are_the_truth(self) -> None:
        dispatcher = self.dispatcher
        if dispatcher is None:
            return
        status, counters = dispatcher.status(), dispatcher.counters
        running = 0
        for lane in status["pipelines"]:
            link = self.links[lane["name"]]
            assert lane["in_flight"] == len(link.open) <= self.capacity[lane["name"]]
            assert (lane["outstanding_tokens"] == 0) <= (lane["in_flight"] == 0) or any(
                link.made[name] == entry[0].sampling.max_tokens for name, entry in link.open.items()
            )
            assert lane["in_flight"] or not lane["outstanding_tokens"]
            running += lane["in_flight"]
        live = [
            name
            for name, listener in self.listeners.items()
            if listener.outcome is None and not listener.cancelled
        ]
        assert dispatcher.in_flight == len(live) == running + dispatcher.waiting
        outcomes = [listener.outcome for listener in self.listeners.values()]
        assert counters.failed == outcomes.count("error")
        assert counters.finished == outcomes.count("stop") + outcomes.count("length")
        assert counters.cancelled == sum(li.cancelled for li in self.listeners.values())
        assert counters.submitted == len(self.listeners)
        assert counters.refused == self.refused
        assert counters.output_tokens == sum(len(li.tokens) for li in self.listeners.values())

    @invariant()
    def each_request_is_in_one_place_and_its_tokens_unbroken(self) -> None:
        for name, listener in self.listeners.items():
            places = sum(name in link.open for link in self.links.values())
            assert places <= (listener.outcome is None and not listener.cancelled)
            assert listener.tokens == list(range(len(listener.tokens)))
            if listener.outcome == "length":
                assert len(listener.tokens) == listener.journal.sampling.max_tokens
            if listener.outcome == "stop":
                assert listener.tokens[-1] == 3

    @invariant()
    def nobody_waits_beside_an_open_lane(self) -> None:
        if self.dispatcher is None or not self.dispatcher.waiting:
            return
        now = self.clock.time()
        waiting = [f for room in self.dispatcher._queue for f in room if not f.case.confined]
        for lane in self.dispatcher._lanes:
            if lane.open(now) and lane.breaker.next_trial is None:
                for flight in waiting:
                    assert not lane.can(flight.features, flight.length)

    @invariant()
    def rooms_are_the_truth(self) -> None:
        if self.dispatcher is None:
            return
        rooms = list(self.dispatcher._queue)
        running = [name for room in rooms for name in room.running]
        assert sorted(running) == sorted(name for li in self.links.values() for name in li.open)
        assert sum(map(len, rooms)) == self.dispatcher.waiting
        assert sum(room.under_way for room in rooms) == self.dispatcher.in_flight
        assert bool(rooms) == bool(self.dispatcher.in_flight)

    @invariant()
    def who_must_run_alone_does(self) -> None:
        """And lanes are kept for nobody who is gone, and at most for half of those that serve."""
        if self.dispatcher is None:
            return
        lanes = list(self.dispatcher._lanes)
        for lane in lanes:
            cases = {flight.case for flight in lane.flights.values()}
            if lane.kept_for is not None:
                assert lane.kept_for.lane is lane
                assert lane.kept_for.flights
                assert lane.kept_for.confined
                assert len(cases) <= 1 or lane.kept_for not in cases
            if any(case.confined for case in cases) and len(cases) > 1:
                assert not any(flight.case.confined for flight in lane.flights.values())

    def teardown(self) -> None:
        """Give everybody time: nothing may hang for ever."""
        if self.dispatcher is None:
            return
        for name, link in self.links.items():
            link.lose()
            self.dispatcher.remove_pipeline(name)
        self.clock.advance(100)
        assert self.dispatcher.in_flight == 0
        self.counters_are_the_truth()


class StartingOver(Machine):
    keep_tokens = False


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestStartingOver = StartingOver.TestCase
TestStartingOver.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
pytestmark = pytest.mark.timeout(300)
