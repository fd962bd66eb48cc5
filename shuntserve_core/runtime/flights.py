"""What the dispatcher knows of requests and pipelines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import attrs
from attrs import define, evolve, field

from shuntserve_core.interfaces.balancer import Candidate
from shuntserve_core.interfaces.frontdoor import Sink
from shuntserve_core.interfaces.link import READY, EngineLink
from shuntserve_core.journal import Journal
from shuntserve_core.runtime.breaker import Breaker
from shuntserve_core.runtime.fair import Room
from shuntserve_core.runtime.suspects import Case
from shuntserve_core.types.request import EngineRequest, StepOutput

PLANNED, UNPLANNED = "planned", "unplanned"
"""Kinds of migration: asked for by the cluster manager, or forced by a loss or a failure."""
PREEMPTED = "preempted"
"""Another kind: its slot went to a tenant that had less than its share."""
EXPECTED = 256
"""Tokens of output that a request is taken to have when it is sent to an engine."""


class Timer(Protocol):
    """A call that will happen."""

    def cancel(self) -> None:
        """Make it not happen."""
        ...


class Observer(Protocol):
    """Hears durations as they happen, for histograms."""

    def stalled(self, kind: str, seconds: float) -> None:
        """A migrated request has its next token; `kind` is `planned` or `unplanned`."""
        ...

    def queued(self, seconds: float) -> None:
        """A request was sent to an engine after it waited."""
        ...

    def switched(self, part: str, seconds: float) -> None:
        """A part of a switch from one engine to another is over, as in `runtime.switching`."""
        ...


class Silence:
    """An observer that does nothing."""

    def stalled(self, kind: str, seconds: float) -> None:
        """Nothing."""

    def queued(self, seconds: float) -> None:
        """Nothing."""

    def switched(self, part: str, seconds: float) -> None:
        """Nothing."""


@define
class Counters:
    """What happened since the start; every submitted request ends in exactly one of the four."""

    submitted: int = 0
    finished: int = 0
    """By `stop` or `length`."""
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    """At once, without being submitted."""
    output_tokens: int = 0
    migrated: Counter[str] = field(factory=Counter)
    """By `planned` and `unplanned`."""
    recomputed_tokens: int = 0
    """Prompt and output tokens that migrated requests had to be read again by an engine."""
    resume_impossible: Counter[str] = field(factory=Counter)
    """By feature that no engine had."""
    preempted: int = 0
    """Requests that gave their slot to another tenant, to go on later."""
    given_up: int = 0
    """Of the failed: those that made engines end."""
    circuits_opened: int = 0
    timed_out: int = 0
    """Of the failed: those that waited in the queue for too long."""

    def flat(self) -> dict[str, int]:
        """One number a name, for a status page."""
        numbers = {
            "submitted": self.submitted,
            "finished": self.finished,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "refused": self.refused,
            "timed_out": self.timed_out,
            "output_tokens": self.output_tokens,
            "recomputed_tokens": self.recomputed_tokens,
            "circuits_opened": self.circuits_opened,
            "preempted": self.preempted,
            "given_up": self.given_up,
            "resume_impossible": self.resume_impossible.total(),
        }
        for kind in (PLANNED, UNPLANNED):
            numbers[f"migrated_{kind}"] = self.migrated[kind]
        for feature, count in self.resume_impossible.items():
            numbers[f"resume_impossible_{feature}"] = count
        return numbers


@define(eq=False)
class Lane:
    """A pipeline, with the requests that it has."""

    name: str
    link: EngineLink
    throughput: float
    capacity: int
    breaker: Breaker
    draining: bool = False
    flights: dict[str, Flight] = field(factory=dict)
    """By request id; its length is the in-flight count, so that no counter can drift."""
    tokens: int = 0
    """Sum of the flights' `pending`."""
    dispatched: int = 0
    """Requests ever sent to it."""
    kept_for: Case | None = None
    """Takes only requests of this case, and them only while there are no others."""
    on_first_token: Callable[[float], None] | None = None
    """Told once: seconds from the first request that it was sent to its first token of any."""
    first_sent: float = 0.0
    """When that request was sent."""

    def sent(self, now: float) -> None:
        """A request was sent to it."""
        self.dispatched += 1
        if self.dispatched == 1:
            self.first_sent = now
        self.breaker.sent(now)

    def spoke(self, now: float) -> None:
        """A token came from it."""
        tell, self.on_first_token = self.on_first_token, None
        if tell is not None:
            tell(now - self.first_sent)

    @property
    def serves(self) -> bool:
        """Whether it takes requests at all."""
        return not self.draining and self.link.lost is None and self.link.state == READY

    def open(self, now: float) -> bool:
        """Whether it can take one more request of anybody now."""
        return self.kept_for is None and self.has_room(now)

    def has_room(self, now: float) -> bool:
        """Whether there is room for one more, whoever it is kept for."""
        has_room = len(self.flights) < self.capacity
        return has_room and self.serves and self.breaker.admits(now)

    def others(self, case: Case) -> list[Flight]:
        """What it has that is not of a case."""
        return [flight for flight in self.flights.values() if flight.case is not case]

    def can(self, features: frozenset[str], length: int) -> bool:
        """Whether its engine can do what a request asks for."""
        info = self.link.info
        return length <= info.max_length and features <= info.features

    def candidate(self) -> Candidate:
        """As the balancer sees it."""
        return Candidate(self.name, self.throughput, self.capacity, len(self.flights), self.tokens)

    def status(self) -> dict[str, Any]:
        """For people."""
        return {
            "name": self.name,
            "state": self.link.state if self.link.lost is None else "lost",
            "draining": self.draining,
            "in_flight": len(self.flights),
            "capacity": self.capacity,
            "throughput_rps": self.throughput,
            "outstanding_tokens": self.tokens,
            "dispatched": self.dispatched,
            "kept_for": "" if self.kept_for is None else self.kept_for.name,
            "circuit": "closed" if self.breaker.next_trial is None else "open",
            "engine": attrs.asdict(self.link.load),
        }


@define(eq=False)
class Flight:
    """A request from submission to its outcome."""

    journal: Journal
    sink: Sink
    room: Room[Flight]
    """Its tenant's."""
    case: Case
    """What was asked for together with it."""
    lane: Lane | None = None
    """Where it runs, or None while it waits."""
    pending: int = 0
    """Tokens that its engine must still read or make, at most."""
    unread: int = 0
    """Of those, the ones to read: gone with the first word of the engine."""
    repeated: int = 0
    """Tokens that the engine makes a second time, because it was not told of them."""
    rescored: int = 0
    """Logprobs of the prompt that it tells a second time: they come from the prompt's start."""
    faults: int = 0
    """Failures of engines that went on, in a row without a token in between."""
    avoid: str = ""
    """Pipeline that failed it last."""
    kind: str = ""
    """Of the migration under way; empty if there is none."""
    since: float = 0.0
    """When it began to wait, or when its tokens stopped coming."""
    deadline: Timer | None = None
    charged: int = 0
    """Tokens of output that its tenant has been charged for."""

    request: EngineRequest = field(init=False)
    """What the next engine gets."""
    features: frozenset[str] = field(init=False)
    """What the next engine must be able to do."""

    def __attrs_post_init__(self) -> None:
        self.rewrite(keep_tokens=True)

    def rewrite(self, *, keep_tokens: bool) -> None:
        """Make the request for the next engine from the journal as it is now."""
        # Sinks see the journal's id; links tell attempts apart themselves.
        request = evolve(self.journal.request(), id=self.journal.id)
        self.rescored = len(self.journal.prompt_logprobs)
        if not keep_tokens:
            self.repeated = len(request.output)
            request = evolve(request, output=())
        self.request, self.features = request, request.features

    def without_rescored(self, output: StepOutput) -> StepOutput:
        """An output without the logprobs of the prompt that the journal has already."""
        count = min(self.rescored, len(output.prompt_logprobs))
        self.rescored -= count
        return evolve(output, prompt_logprobs=output.prompt_logprobs[count:])

    @property
    def length(self) -> int:
        """Tokens of prompt and output, at most."""
        return len(self.journal.prompt) + self.journal.sampling.max_tokens

    def board(self, lane: Lane) -> None:
        """Count it into a lane."""
        request = self.request
        self.unread = len(request.prompt) + len(request.output)
        self.pending = self.unread + request.sampling.max_tokens - len(request.output)
        self.lane = lane
        lane.flights[self.journal.id] = self
        self.room.running[self.journal.id] = self
        lane.tokens += self.pending

    def begins(self) -> int:
        """Charge its tenant for what it is expected to be; tokens, 0 if that was done before."""
        if self.charged:
            return 0
        self.charged = min(self.journal.sampling.max_tokens, EXPECTED)
        return len(self.journal.prompt) + self.charged

    def settle(self) -> None:
        """Charge its tenant for the tokens that it has, no more and no less."""
        if self.charged:
            self.room.charge(len(self.journal.output) - self.charged)
            self.charged = len(self.journal.output)

    def work(self, tokens: int) -> None:
        """Count tokens that its engine made, and with the first of them all that it read."""
        done = min(self.unread + tokens, self.pending)
        self.unread = 0
        self.pending -= done
        if self.lane is not None:
            self.lane.tokens -= done

    def leave(self) -> None:
        """Count it out of its lane."""
        lane, self.lane = self.lane, None
        if lane is not None:
            del lane.flights[self.journal.id], self.room.running[self.journal.id]
            lane.tokens -= self.pending
        self.pending = self.unread = 0
