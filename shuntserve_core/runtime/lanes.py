"""The pipelines that requests can go to, and which of them a request may go to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shuntserve_core.interfaces.balancer import Balancer
from shuntserve_core.runtime.flights import Flight, Lane
from shuntserve_core.runtime.loads import Loads
from shuntserve_core.runtime.suspects import Case

COMBINATION = "combination"
"""What is missing where every feature is there, but no engine has all of them or is long enough."""


class Lanes:
    """All lanes by name; `max_length` and `features` are what engines will have while none is
    there."""

    def __init__(
        self, balancer: Balancer, *, max_length: int, features: frozenset[str] | None
    ) -> None:
        self._balancer = balancer
        self._max_length = max_length
        self._features = features
        self._lanes: dict[str, Lane] = {}
        self._loads = Loads()

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def __contains__(self, name: str) -> bool:
        return name in self._lanes

    def get(self, name: str) -> Lane | None:
        """The lane of that name."""
        return self._lanes.get(name)

    def add(self, lane: Lane) -> None:
        """Have one more."""
        self._lanes[lane.name] = lane

    def remove(self, name: str) -> Lane | None:
        """Forget one, in the balancer too."""
        lane = self._lanes.pop(name, None)
        if lane is not None:
            self._balancer.forget(name)
            self._loads.note(lane.link)
        return lane

    @property
    def features(self) -> frozenset[str]:
        """What any engine can do."""
        lanes = self._alive()
        if not lanes:
            return self._features or frozenset()
        return frozenset().union(*(lane.link.info.features for lane in lanes))

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence."""
        if self._max_length:
            return self._max_length
        return max((lane.link.info.max_length for lane in self._alive()), default=0)

    @property
    def ready(self) -> bool:
        """Whether any serves."""
        return any(lane.serves for lane in self)

    @property
    def throughput(self) -> float:
        """Estimated requests per second of those that serve."""
        return sum(lane.throughput for lane in self if lane.serves)

    def loads(self) -> dict[str, Any]:
        """What their engines say of themselves, put together; see `Loads`."""
        return self._loads.as_json(lane.link for lane in self)

    def any_open(self, now: float) -> bool:
        """Whether any has room for a request."""
        return any(lane.open(now) for lane in self)

    def missing(self, flight: Flight) -> frozenset[str]:
        """What keeps a request from every engine that is there, if anything does."""
        lanes, need = self._alive(), self._need(flight)
        if not lanes:
            known = flight.features if self._features is None else self._features
            return flight.features - known
        if any(lane.can(flight.features, need) for lane in lanes):
            return frozenset()
        return flight.features - self.features or frozenset({COMBINATION})

    def choose(self, flight: Flight, now: float) -> Lane | None:
        """The balancer's choice of those that can take a request now."""
        case = flight.case
        if case.confined:
            return case.lane if self._may_run_alone(flight, now) else None
        lanes = self._candidates(flight.features, flight, now)
        if flight.avoid:
            lanes = [lane for lane in lanes if lane.name != flight.avoid] or lanes
        if case.losses:
            lanes = [lane for lane in lanes if not case.half_reached(lane)] or lanes
        if not lanes:
            return None
        return self._lanes[self._balancer.pick([lane.candidate() for lane in lanes])]

    def _candidates(self, features: frozenset[str], flight: Flight, now: float) -> list[Lane]:
        need = self._need(flight)
        return [lane for lane in self if lane.open(now) and lane.can(features, need)]

    def _may_run_alone(self, flight: Flight, now: float) -> bool:
        case, lane = flight.case, flight.case.lane
        if lane is None or case.held or lane.others(case):
            return False
        return lane.has_room(now) and self._able(lane, flight)

    def keep_for(self, case: Case) -> Lane | None:
        """Have a lane take requests of a case alone, the one with the fewest others, if any can.

        At most half of those that serve are kept so, but one always may be.
        """
        waiting = case.waiting()
        serving = [lane for lane in self if lane.serves]
        kept = sum(lane.kept_for is not None for lane in serving)
        if not waiting or 2 * (kept + 1) > max(len(serving), 2):
            return None
        free = [lane for lane in serving if lane.kept_for is None and self._able(lane, waiting[0])]
        lane = min(free, key=lambda lane: len(lane.others(case)), default=None)
        if lane is not None:
            lane.kept_for, case.lane = case, lane
        return lane

    def suits(self, lane: Lane, case: Case) -> bool:
        """Whether a lane that is kept for a case is of use to it, and no empty one is of more."""
        if any(flight.lane is lane for flight in case.running()):
            return True
        waiting = case.waiting()
        free = [other for other in self if other.serves and other.kept_for is None]
        better = any(
            not other.flights and self._able(other, flight)
            for other in free
            for flight in waiting[:1]
        )
        able = lane.serves and any(self._able(lane, flight) for flight in waiting)
        return able and not (lane.flights and better)

    def suitable(self, flight: Flight) -> bool:
        """Whether any lane that serves can do what a request asks for."""
        return any(lane.serves and self._able(lane, flight) for lane in self)

    def _able(self, lane: Lane, flight: Flight) -> bool:
        return lane.can(flight.features, self._need(flight))

    def could_move(self, flight: Flight, now: float) -> bool:
        """Whether a request that runs could go on elsewhere at once."""
        lane, features = flight.lane, flight.journal.request().features
        return any(other is not lane for other in self._candidates(features, flight, now))

    def would_take(self, lane: Lane, flight: Flight, now: float) -> bool:
        """Whether a lane could take a request if one of its own left."""
        able = lane.kept_for is None and self._able(lane, flight)
        return able and lane.serves and lane.breaker.admits(now)

    def _need(self, flight: Flight) -> int:
        """Tokens of context: an engine with less would cut the answer short, and differently."""
        return min(flight.length, self.max_length or flight.length)

    def _alive(self) -> list[Lane]:
        return [lane for lane in self._lanes.values() if lane.link.lost is None]
