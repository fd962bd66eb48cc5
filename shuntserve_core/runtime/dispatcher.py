"""Every request's way from the front door to its outcome, over however many engines it takes.

```
            submit                    a lane has room
  (refused) <---- new ----> WAITING ----------------> RUNNING ---- finish ----> told: stop, length
                              ^  |                    |  |  |
                              |  | queue_seconds      |  |  '-- bad request --> told: error 400
                              |  '--> told: error 503 |  |
                              |                       |  '-- max_faults, -----> told: error 500
                              |                       |      max_losses
                              '--- lost, failed, -----'
                              migrated, preempted      '---- cancel ----------> forgotten, untold
```

Every tenant has a waiting room of its own, and whose turn it is goes by the work done for each
(see `fair`).  Engines are sent no more than they run at once, so the queue is here and not in them.
Where all are full, a tenant with less than its share gets a slot of one that has more: the request
in it goes on later, from its tokens.

A request on its way back to WAITING carries its tokens in its journal, stands in front of those
that have none, and is ended instead where its journal is complete already, or where no engine can
do what it asks for.  `WAITING` and `RUNNING` are `Flight.lane` being None or not; a request is in
exactly one queue or in exactly one lane, and in-flight counts are the sizes of these tables.

Words of an engine that a request has left are told by the attempt that they belong to, and dropped.
Sinks may cancel and submit from within `on_output`: all tables are settled before they are called.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from attrs import evolve

from shuntserve_core.interfaces.balancer import Balancer
from shuntserve_core.interfaces.frontdoor import Refused, Sink
from shuntserve_core.interfaces.link import EngineLink, LinkLost, RequestRefused
from shuntserve_core.journal import Journal
from shuntserve_core.runtime.breaker import Breaker
from shuntserve_core.runtime.fair import FairQueue, Room
from shuntserve_core.runtime.flights import (
    PLANNED,
    PREEMPTED,
    UNPLANNED,
    Counters,
    Flight,
    Lane,
    Observer,
    Silence,
    Timer,
)
from shuntserve_core.runtime.lanes import COMBINATION, Lanes
from shuntserve_core.runtime.suspects import Case, Cause, Loss, Suspects, account, told
from shuntserve_core.types.request import StepOutput

log = logging.getLogger(__name__)

KILLS_ENGINES = "kills_engines"
"""`Journal.code` of requests that are given up because engines ended with them."""
TURN = 1 << 15
"""Tokens of requests that are sent from the queue in one turn of the loop: some 2 ms."""
UNEXPLAINED_SECONDS = 10.0
"""After which a lost engine counts as having ended by itself, if nobody says why."""


class Clock(Protocol):
    """The part of an event loop that is needed here."""

    def time(self) -> float:
        """Seconds."""
        ...

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Call once, `delay` seconds from now."""
        ...


class Dispatcher:
    """The `Backend` of front doors.  Belongs to one event loop."""

    def __init__(
        self,
        balancer: Balancer,
        *,
        queue: int = 1024,
        queue_seconds: float = 60.0,
        max_length: int = 0,
        features: frozenset[str] | None = None,
        max_faults: int = 5,
        max_losses: int = 3,
        breaker: Callable[[], Breaker] = Breaker,
        observer: Observer | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`max_length` and `features` are what engines will have while none is there yet.

        A request is given up after more than `max_faults` failures in a row without a token, and
        once `max_losses` engines ended with it, however many tokens it has: see `suspects`.
        """
        self.counters = Counters()
        self.observer = observer or Silence()
        self.keep_tokens = True
        """Whether a migrated request goes on from its tokens; if not, they are made once more, and
        dropped: only to compare with systems that work so."""
        self.cluster_status: Callable[[], dict[str, Any]] = dict
        """What the cluster manager adds to `status`."""
        self.durations: Callable[[], Mapping[str, Any]] = dict
        """What the observer adds to `status`."""
        self._limit = queue
        self._queue_seconds = queue_seconds
        self._max_faults = max_faults
        self._breaker = breaker
        self._clock: Clock = clock or asyncio.get_running_loop()
        self._lanes = Lanes(balancer, max_length=max_length, features=features)
        self._flights: dict[str, Flight] = {}
        self._queue: FairQueue[Flight] = FairQueue()
        self._suspects = Suspects(max_losses)
        self._sent = 0
        """Tokens of requests that were sent from the queue in this turn."""

    # For front doors

    def submit(self, journal: Journal, sink: Sink) -> None:
        """As `Backend.submit`."""
        if journal.id in self._flights:
            self.counters.refused += 1
            raise Refused(400, f"request id {journal.id!r} is in use")
        room = self._queue.enter(journal.tenant, journal.weight)
        case = self._suspects.case_of(journal)
        flight = Flight(journal, sink, room, case, since=self._clock.time())
        self._flights[journal.id] = case.flights[journal.id] = flight
        try:
            self._check(flight)
            if not self._queue.waiting and self._place(flight):
                self.counters.submitted += 1
                return
            if len(room.later) >= self._limit:
                raise self._full()
        except Refused:
            self._forget(flight)
            self.counters.refused += 1
            raise
        self.counters.submitted += 1
        self._wait(flight)
        self._pump()

    def cancel(self, request_id: str) -> None:
        """As `Backend.cancel`."""
        flight = self._flights.get(request_id)
        if flight is None:
            return
        if flight.lane is not None:
            flight.lane.link.abort(request_id)
        self._forget(flight)
        self.counters.cancelled += 1
        self._pump()

    @property
    def features(self) -> frozenset[str]:
        """As `Backend.features`."""
        return self._lanes.features

    @property
    def ready(self) -> bool:
        """As `Backend.ready`."""
        return self._lanes.ready

    @property
    def max_length(self) -> int:
        """As `Backend.max_length`."""
        return self._lanes.max_length

    @property
    def in_flight(self) -> int:
        """Requests that run or wait."""
        return len(self._flights)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return self._queue.waiting

    def status(self) -> dict[str, Any]:
        """As `Backend.status`."""
        return {**self.own_status(), "cluster": self.cluster_status()}

    def own_status(self) -> dict[str, Any]:
        """What the dispatcher itself knows."""
        return {
            "ready": self.ready,
            "in_flight": self.in_flight,
            "waiting": self.waiting,
            "counters": self.counters.flat(),
            "pipelines": [lane.status() for lane in self._lanes],
            "engines": self._lanes.loads(),
            "durations": self.durations(),
        }

    # For the cluster manager

    def add_pipeline(
        self,
        name: str,
        link: EngineLink,
        throughput: float,
        capacity: int,
        *,
        on_first_token: Callable[[float], None] | None = None,
    ) -> None:
        """Let requests go to a pipeline: at once if its engine is ready, else when it says so.

        `throughput` is its estimate in requests per second, `capacity` the requests that it runs
        at once.  `on_first_token` is told once how many seconds there were from the first request
        that it is sent to the first token of any.  The link stays the caller's to close.
        """
        if name in self._lanes:
            raise ValueError(f"pipeline {name!r} is there already")
        lane = Lane(
            name, link, throughput, capacity, self._breaker(), on_first_token=on_first_token
        )
        self._lanes.add(lane)
        link.on_lost(partial(self._lost, lane))
        link.on_state(lambda _: self._pump())
        self._pump()

    def drain_pipeline(self, name: str) -> None:
        """Send a pipeline nothing new; what it has goes on.  Unknown names are ignored."""
        lane = self._lanes.get(name)
        if lane is not None:
            lane.draining = True

    def admit_pipeline(self, name: str) -> None:
        """Undo `drain_pipeline`: the notice was withdrawn.  Unknown names are ignored."""
        lane = self._lanes.get(name)
        if lane is not None:
            lane.draining = False
            self._pump()

    def migrate(self, name: str) -> None:
        """Drain a pipeline and carry what it has to others.  Unknown names are ignored."""
        lane = self._lanes.get(name)
        if lane is not None:
            lane.draining = True
            self._evacuate(lane, PLANNED, "migrated")

    def remove_pipeline(self, name: str, cause: Cause | None = None) -> None:
        """Forget a pipeline; requests that it still has count as lost, and go on elsewhere.

        `cause` says why it goes: by default its engine ended if its link is lost, and otherwise
        the caller wants it so.  One that is unknown may be explained later.  Unknown names are
        ignored.
        """
        lane = self._lanes.remove(name)
        if lane is None:
            return
        if cause is None:
            cause = Cause.ORDERED if lane.link.lost is None else Cause.CRASHED
        lane.draining = True
        self.explain(name, cause)  # its link may have been lost before
        self._count_loss(lane, cause, lane.link.lost or "pipeline removed")
        self._evacuate(lane, UNPLANNED, "pipeline removed")

    def explain(self, name: str, cause: Cause) -> None:
        """Say why a pipeline was lost, where that was not known; unknown names are ignored."""
        changed = self._suspects.explain(name, cause)
        for case in changed:
            if case.guilty:
                self._convict(case)
        if changed:
            self._pump()

    # Placing

    def _check(self, flight: Flight) -> None:
        missing = self._lanes.missing(flight)
        if missing == {COMBINATION}:
            wanted = ", ".join(sorted(flight.features)) or "this"
            raise Refused(400, f"no single engine here can do all of it, at this length: {wanted}")
        if missing:
            raise Refused(400, f"no engine here can do this: {', '.join(sorted(missing))}")

    def _place(self, flight: Flight) -> bool:
        """Send a request to a lane, if any can take it.  Raises `Refused` if none ever will."""
        while True:
            lane = self._lanes.choose(flight, self._clock.time())
            if lane is None:
                return False
            try:
                self._send(flight, lane)
            except LinkLost:
                lane.draining = True  # the link's own word of it is on its way
            except RequestRefused as error:
                raise Refused(400, str(error)) from error
            else:
                return True

    def _send(self, flight: Flight, lane: Lane) -> None:
        journal, now = flight.journal, self._clock.time()
        journal.attempts += 1
        flight.board(lane)
        try:
            lane.link.submit(flight.request, partial(self._heard, flight, journal.attempts))
        except (LinkLost, RequestRefused):
            flight.leave()
            raise
        lane.sent(now)
        self._stop_waiting(flight)
        if not flight.kind:
            self.observer.queued(now - flight.since)
        if journal.waited is None:
            journal.waited = now - flight.since

    def _pump(self) -> None:
        """Place what waits, each tenant in its turn, as far as there is room or can be made.

        What is too much for one turn of the loop goes on in the next.
        """
        while self._queue.waiting and self._sent < TURN:
            for flight in self._queue.turns():
                if self._sent >= TURN or not self._lanes.any_open(self._clock.time()):
                    break
                # else a sink that was told something has changed that
                if self._waits(flight) and not flight.case.confined:
                    self._try(flight)
            if self._sent >= TURN or not self._preempt():
                break
        self._run_alone()

    def _try(self, flight: Flight) -> None:
        try:
            if self._place(flight):
                self._spend(len(flight.request.prompt) + len(flight.request.output))
        except Refused as refused:
            self._fail(flight, refused.message, refused.status)

    def _spend(self, tokens: int) -> None:
        """Count what was sent in this turn; what it leaves waiting is looked at in the next."""
        before, self._sent = self._sent, self._sent + tokens
        if before < TURN <= self._sent:
            self._clock.call_later(0.0, self._next_turn)

    def _next_turn(self) -> None:
        self._sent = 0
        self._pump()

    def _preempt(self) -> bool:
        """Have a tenant with more than its share of slots give one to a tenant with less.

        Says whether one did; what it gave up may then find a place elsewhere.
        """
        due = [(room, flight) for room in self._queue if (flight := _first_due(room)) is not None]
        if not due:
            return False
        poor, waiting = min(due, key=lambda pair: pair[0].share())
        flight = self._dispensable(poor, waiting)
        if flight is None:
            return False
        self._put_off(flight)
        self._try(waiting)
        return not self._waits(waiting)

    def _dispensable(self, room: Room[Flight], waiting: Flight) -> Flight | None:
        """A request that may give its slot to the one that waits in a room; the least loss."""
        rich = max(self._queue, key=Room.share)
        if rich.share(-1) < room.share(1) or len(rich.running) < 2 or room.spent > rich.spent:
            return None
        found = [flight for flight in rich.running.values() if self._may_give_way(flight, waiting)]
        return min(
            found, key=lambda flight: flight.unread + len(flight.journal.output), default=None
        )

    def _may_give_way(self, flight: Flight, waiting: Flight) -> bool:
        lane = flight.lane
        if lane is None or not (self.keep_tokens or not flight.journal.output):
            return False
        if flight.journal.output and "resume" not in lane.link.info.features:
            return False
        ended = flight.journal.ended(self.max_length or flight.length) is not None
        return not ended and self._lanes.would_take(lane, waiting, self._clock.time())

    def _put_off(self, flight: Flight) -> None:
        """Take a request from its engine, to go on before all others of its tenant."""
        lane = flight.lane
        if lane is None:
            return
        lane.link.abort(flight.journal.id)
        flight.leave()
        flight.rewrite(keep_tokens=True)
        self.counters.preempted += 1
        self.counters.recomputed_tokens += len(flight.request.prompt) + len(flight.request.output)
        if not flight.kind:
            flight.kind, flight.since = PREEMPTED, self._clock.time()
        self._wait(flight, first=True)

    # Alone

    def _run_alone(self) -> None:
        """Keep pipelines for cases that may only run alone, empty them, send the cases there.

        What else is there moves if it has a place elsewhere, and finishes there if not.
        """
        for case in self._suspects.confined():
            if case.lane is not None and not self._lanes.suits(case.lane, case):
                case.release()
            self._call_back(case)
            lane = case.lane or self._lanes.keep_for(case)
            if lane is None:
                continue
            for flight in lane.others(case):
                if self._may_move(flight) and self._lanes.could_move(flight, self._clock.time()):
                    self._move(flight)
                    self._try(flight)
            self._call_back(case)
            for flight in case.waiting():
                if self._waits(flight):
                    self._try(flight)

    def _call_back(self, case: Case) -> None:
        """Have those of a case wait that run elsewhere than they should, or beside others."""
        for flight in case.running():
            lane = flight.lane
            astray = lane is not None and (lane is not case.lane or lane.others(case))
            if astray and self._may_move(flight):
                self._move(flight)

    def _may_move(self, flight: Flight) -> bool:
        """Whether a request that runs could go on anywhere else, and has need to."""
        lane, begun = flight.lane, bool(flight.journal.output)
        able = lane is not None and (not begun or "resume" in lane.link.info.features)
        return able and flight.journal.ended(self.max_length or flight.length) is None

    def _move(self, flight: Flight) -> None:
        if flight.lane is not None:
            flight.lane.link.abort(flight.journal.id)
            flight.leave()
            self._go_on(flight, PLANNED, "moved, so that another runs alone")

    def _count_loss(self, lane: Lane, cause: Cause, reason: str) -> None:
        """Hold a loss against what is in flight there, before that goes on elsewhere."""
        loss = self._suspects.lost(lane, cause, reason)
        if loss is not None and cause is Cause.UNKNOWN:
            self._clock.call_later(UNEXPLAINED_SECONDS, self._unexplained, loss)

    def _unexplained(self, loss: Loss) -> None:
        if self._suspects.last(loss.pipeline) is loss and loss.cause is Cause.UNKNOWN:
            self.explain(loss.pipeline, Cause.CRASHED)

    def _convict(self, case: Case) -> None:
        """Give a case up: engines ended with it, the last of them with nothing else."""
        log.error("request %r given up, it makes engines end; %s", case.name, account(case))
        error = f"given up: {len(case.losses)} engines ended while they worked at this request"
        for flight in tuple(case.flights.values()):
            if self._is(flight):
                if flight.lane is not None:
                    flight.lane.link.abort(flight.journal.id)
                self.counters.given_up += 1
                flight.journal.code = KILLS_ENGINES
                self._fail(flight, error, 500)

    # Waiting

    def _wait(self, flight: Flight, *, first: bool = False) -> None:
        self._queue.add(flight.room, flight.journal.id, flight, first=first)
        flight.deadline = self._clock.call_later(self._queue_seconds, self._expired, flight)

    def _stop_waiting(self, flight: Flight) -> None:
        self._queue.drop(flight.room, flight.journal.id)
        if flight.deadline is not None:
            flight.deadline.cancel()
            flight.deadline = None

    def _expired(self, flight: Flight) -> None:
        if not self._waits(flight):
            return
        if flight.kind == PREEMPTED and flight.room.running:  # its turn comes after theirs
            flight.deadline = self._clock.call_later(self._queue_seconds, self._expired, flight)
            return
        if flight.case.confined and self._lanes.suitable(flight):  # its turn is still to come
            flight.deadline = self._clock.call_later(self._queue_seconds, self._expired, flight)
            return
        self.counters.timed_out += 1
        why = "no pipeline had room" if self.ready else "no pipeline served"
        error = f"{why} within {self._queue_seconds:g} s{told(flight.case)}"
        self._fail(flight, error, 503, self._retry_after())

    def _full(self) -> Refused:
        status, why = (429, "the queue is full") if self.ready else (503, "no pipeline serves")
        return Refused(status, why, self._retry_after())

    def _retry_after(self) -> float:
        """Seconds until those that wait now may have been served."""
        throughput = self._lanes.throughput
        if not throughput:
            return self._queue_seconds
        return min(max((self.waiting + 1) / throughput, 1.0), self._queue_seconds)

    # What engines say

    def _heard(self, flight: Flight, attempt: int, output: StepOutput) -> None:
        lane, journal = flight.lane, flight.journal
        if lane is None or attempt != journal.attempts:
            return  # a late word of an engine that the request has left
        failed = output.finish == "error" and not output.bad_request
        if failed:
            reason, output = output.error, evolve(output, finish=None, error="")
        closes = False
        if output.prompt_logprobs:
            output = flight.without_rescored(output)
        if output.tokens:
            lane.spoke(self._clock.time())
            closes = flight.unread > 0 and lane.breaker.succeeded()
            output = self._work(flight, output)
        if output.tokens or output.finish is not None:
            self._resumes(flight)
        journal.record(output)
        if failed:
            self._engine_failed(flight, lane, reason, output)
        elif output.finish is not None:
            self._finish(flight, output)
        elif output.tokens:
            _tell(flight, output)
        if closes:
            self._pump()

    def _work(self, flight: Flight, output: StepOutput) -> StepOutput:
        """Count an output's tokens; returns it without those that the journal has already."""
        flight.work(len(output.tokens))
        flight.faults = 0
        repeated = min(flight.repeated, len(output.tokens))
        if repeated:
            flight.repeated -= repeated
            self.counters.recomputed_tokens += repeated
            tokens, logprobs = output.tokens[repeated:], output.logprobs[repeated:]
            output = evolve(output, tokens=tokens, logprobs=logprobs)
        self.counters.output_tokens += len(output.tokens)
        more = len(flight.journal.output) + len(output.tokens) - flight.charged
        if more > 0:
            flight.charged += more
            flight.room.charge(more)
        return output

    def _resumes(self, flight: Flight) -> None:
        if flight.kind:
            self.observer.stalled(flight.kind, self._clock.time() - flight.since)
            flight.kind = ""

    def _engine_failed(self, flight: Flight, lane: Lane, reason: str, output: StepOutput) -> None:
        if lane.breaker.failed(self._clock.time()):
            self.counters.circuits_opened += 1
            log.warning("pipeline %s fails requests, left alone for a while: %s", lane.name, reason)
        if lane.breaker.next_trial is not None:
            self._clock.call_later(lane.breaker.cooldown, self._pump)
        flight.avoid = lane.name
        flight.faults += 1
        if output.tokens:
            _tell(flight, output)
        if self._is(flight) and flight.lane is lane:
            flight.leave()
            self._go_on(flight, UNPLANNED, reason)
        self._pump()

    def _lost(self, lane: Lane, reason: str) -> None:
        self._count_loss(lane, Cause.UNKNOWN, reason)
        self._evacuate(lane, UNPLANNED, f"engine lost: {reason}")

    # Going on elsewhere

    def _evacuate(self, lane: Lane, kind: str, reason: str) -> None:
        moving = tuple(lane.flights.values())
        for flight in moving:
            lane.link.abort(flight.journal.id)
            flight.leave()
        for flight in moving:
            if self._is(flight):  # else the sink of one before it cancelled it
                self._go_on(flight, kind, reason)
        self._pump()

    def _go_on(self, flight: Flight, kind: str, reason: str) -> None:
        """Queue a request for its next engine, or tell why there is none."""
        journal = flight.journal
        ended = journal.ended(self.max_length or flight.length)
        if ended is not None:
            output = StepOutput(journal.id, finish=ended)
            journal.record(output)
            self._finish(flight, output)
            return
        if flight.case.guilty:
            self._convict(flight.case)
            return
        if flight.faults > self._max_faults:
            log.error("request %r given up, engines fail it: %s", journal.id, reason)
            error = f"given up: engines failed at it {flight.faults} times in a row"
            self._fail(flight, error, 500)
            return
        flight.rewrite(keep_tokens=self.keep_tokens)
        missing = self._lanes.missing(flight)
        if missing:
            self.counters.resume_impossible.update(missing)
            log.error("request %r cannot go on elsewhere: %s", journal.id, reason)
            wants = ", ".join(sorted(missing))
            error = f"no engine can go on with it, it needs {wants}{told(flight.case)}"
            self._fail(flight, error, 500)
            return
        self.counters.migrated[kind] += 1
        self.counters.recomputed_tokens += len(flight.request.prompt) + len(flight.request.output)
        if not flight.kind:  # else it was moved again before it had a word from the last one
            flight.kind, flight.since = kind, self._clock.time()
        self._wait(flight, first=True)

    # Ends

    def _finish(self, flight: Flight, output: StepOutput) -> None:
        self._forget(flight)
        if output.finish == "error":
            flight.journal.status = 400
            self.counters.failed += 1
        else:
            self.counters.finished += 1
        _tell(flight, output)
        self._pump()

    def _fail(
        self, flight: Flight, error: str, status: int, retry_after: float | None = None
    ) -> None:
        if flight.case.lane is not None:  # which may be free for others now
            self._clock.call_later(0.0, self._pump)
        self._forget(flight)
        self.counters.failed += 1
        journal = flight.journal
        journal.status, journal.retry_after = status, retry_after
        output = StepOutput(journal.id, finish="error", error=error, bad_request=status == 400)
        journal.record(output)
        _tell(flight, output)

    def _forget(self, flight: Flight) -> None:
        if self._flights.pop(flight.journal.id, None) is None:
            return
        self._stop_waiting(flight)
        flight.leave()
        flight.settle()
        self._queue.leave(flight.room)
        self._suspects.leave(flight)

    def _waits(self, flight: Flight) -> bool:
        return self._is(flight) and flight.lane is None

    def _is(self, flight: Flight) -> bool:
        """Whether a request is still under way."""
        return self._flights.get(flight.journal.id) is flight


def _lost_work(flight: Flight) -> int:
    """Tokens that an engine would have to read again."""
    return len(flight.journal.prompt) + len(flight.journal.output)


def _first_due(room: Room[Flight]) -> Flight | None:
    return next((flight for flight in room if not flight.case.confined), None)


def _tell(flight: Flight, output: StepOutput) -> None:
    try:
        flight.sink.on_output(output)
    except Exception:  # the front door's mistake must not cost other requests their words
        log.exception("the sink of request %s failed", flight.journal.id)
