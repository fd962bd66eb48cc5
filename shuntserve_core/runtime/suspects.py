"""Which request makes engines end, and keeping it away from others until that is known.

Every request that was in flight when an engine ended by itself is a suspect, whatever it produced
before.  What a client asked for in one go (`n`, several prompts) is one suspect, a `Case`.

```
losses      where it runs
0           anywhere
1           anywhere, but where there is a choice with at most half of those that share the loss
limit - 1   alone: on a pipeline that is kept free for it, until it ends
limit       nowhere: given up, if the last of them was alone
```

So nobody is given up for what another did: whoever is given up was the only one there when the
last engine ended, and no request is there at more than `limit` losses.  Which losses count is a
matter of their `Cause`; one that is not known yet counts, but nobody is given up before it is.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import attrs
from attrs import define, field

if TYPE_CHECKING:
    from shuntserve_core.journal import Journal
    from shuntserve_core.runtime.flights import Flight, Lane

log = logging.getLogger(__name__)

_REMEMBERED = 256
"""Losses whose cause may still be told."""


class Cause(StrEnum):
    """Why a pipeline is there no more."""

    CRASHED = "crashed"
    """Its engine ended, failed or hung by itself, on nodes that are well."""
    UNKNOWN = "unknown"
    """Its engine is silent; it is not known yet whether a node of it is."""
    NODE = "node"
    """A node of it is lost, has had a notice, or is being ended."""
    ORDERED = "ordered"
    """Whoever manages it ended it, or moved its requests away."""

    @property
    def counts(self) -> bool:
        """Whether a request may be to blame."""
        return self in (Cause.CRASHED, Cause.UNKNOWN)


@define(eq=False)
class Loss:
    """An engine that was lost with requests in flight."""

    pipeline: str
    reason: str
    cause: Cause
    requests: int
    cases: tuple[Case, ...]
    """Whose they were."""

    @property
    def alone(self) -> bool:
        """Whether there was nobody else."""
        return len(self.cases) == 1

    def __str__(self) -> str:
        return f"{self.pipeline} ({self.cause}: {self.reason}; {self.requests} in flight)"


@define(eq=False)
class Case:
    """What a client asked for in one go, and the losses it was there at."""

    name: str
    limit: int
    flights: dict[str, Flight] = field(factory=dict)
    """By request id."""
    losses: list[Loss] = field(factory=list)
    """Those that count."""
    lane: Lane | None = None
    """The one that is kept free for it."""

    @property
    def confined(self) -> bool:
        """Whether it may only run alone."""
        return len(self.losses) >= self.limit - 1

    @property
    def guilty(self) -> bool:
        """Whether it is to be given up."""
        return self._enough and all(loss.cause is Cause.CRASHED for loss in self.losses)

    @property
    def held(self) -> bool:
        """Whether it runs nowhere until the cause of a loss is known."""
        return self._enough and not self.guilty

    @property
    def _enough(self) -> bool:
        return len(self.losses) >= self.limit and self.losses[-1].alone

    def waiting(self) -> list[Flight]:
        """Its requests that wait."""
        return [flight for flight in self.flights.values() if flight.lane is None]

    def running(self) -> list[Flight]:
        """Its requests that run."""
        return [flight for flight in self.flights.values() if flight.lane is not None]

    def half_reached(self, lane: Lane) -> bool:
        """Whether a lane has half of those already that share a loss with it."""
        return any(
            2 * sum(loss in other.case.losses for other in lane.flights.values()) >= loss.requests
            for loss in self.losses
        )

    def release(self) -> None:
        """Keep no lane free for it any more."""
        lane, self.lane = self.lane, None
        if lane is not None and lane.kept_for is self:
            lane.kept_for = None


class Suspects:
    """All cases, and the last losses."""

    def __init__(self, limit: int) -> None:
        if limit < 2:
            raise ValueError("the first loss of an engine says nothing: at least two are needed")
        self._limit = limit
        self._cases: dict[str, Case] = {}
        self._losses: OrderedDict[str, Loss] = OrderedDict()

    def case_of(self, journal: Journal) -> Case:
        """The case that a new request belongs to."""
        name = journal.group or journal.id
        return self._cases.setdefault(name, Case(name, self._limit))

    def leave(self, flight: Flight) -> None:
        """A request is over."""
        case = flight.case
        case.flights.pop(flight.journal.id, None)
        if not case.flights:
            case.release()
            if self._cases.get(case.name) is case:
                del self._cases[case.name]

    def lost(self, lane: Lane, cause: Cause, reason: str) -> Loss | None:
        """Count a loss against all that are in flight there, if it is one that counts."""
        if lane.kept_for is not None:
            lane.kept_for.release()
        if not cause.counts or not lane.flights:
            return None
        cases = tuple(dict.fromkeys(flight.case for flight in lane.flights.values()))
        loss = Loss(lane.name, reason, cause, len(lane.flights), cases)
        for case in cases:
            case.losses.append(loss)
        self._forget(lane.name)
        self._losses[lane.name] = loss
        if len(self._losses) > _REMEMBERED:
            self._forget(next(iter(self._losses)))
        return loss

    def _forget(self, pipeline: str) -> None:
        """Nobody will be able to say any more why it was."""
        loss = self._losses.pop(pipeline, None)
        if loss is not None and loss.cause is Cause.UNKNOWN:
            loss.cause = Cause.CRASHED

    def last(self, pipeline: str) -> Loss | None:
        """The last loss of a pipeline of that name."""
        return self._losses.get(pipeline)

    def explain(self, pipeline: str, cause: Cause) -> tuple[Case, ...]:
        """Say why a pipeline was lost; returns the cases for which that changes something.

        A cause that was unknown may become any, and a crash that of a node or an order: whatever
        clears requests is believed, even late.
        """
        loss = self._losses.get(pipeline)
        if loss is None or cause is Cause.UNKNOWN or loss.cause is cause or not loss.cause.counts:
            return ()
        loss.cause = cause
        if not cause.counts:
            for case in loss.cases:
                case.losses.remove(loss)
                if not case.confined:
                    case.release()
            del self._losses[pipeline]
        return tuple(case for case in loss.cases if case.flights)

    def confined(self) -> list[Case]:
        """Cases that may only run alone; those that wait for longest first."""
        if not self._losses:
            return []
        return [case for case in self._cases.values() if case.confined and not case.held]


def told(case: Case) -> str:
    """What a client is told of engines that ended while they worked at its request.

    Nothing of why: logs and addresses are the operator's, and may hold what others asked.
    """
    count = len(case.losses)
    if not count:
        return ""
    engines = "an engine" if count == 1 else f"{count} engines"
    return f"; {engines} ended while working at this request"


def account(case: Case) -> str:
    """What a case was, for the log: everything but its text."""
    flights = list(case.flights.values())
    requests = "; ".join(_described(flight) for flight in flights[:8])
    more = f"; and {len(flights) - 8} more" if len(flights) > 8 else ""
    return f"engines: {', '.join(map(str, case.losses))}; requests: {requests}{more}"


def _described(flight: Flight) -> str:
    journal = flight.journal
    sampling: dict[str, Any] = attrs.asdict(
        journal.sampling,
        recurse=False,
        filter=lambda attribute, value: value != attribute.default,
    )
    for name in ("guided", "logit_bias", "stop_token_ids"):  # a client's words, or ids of them
        value = sampling.pop(name, None)
        if value:
            sampling[name] = sorted(value) if name == "guided" else f"{len(value)} entries"
    return (
        f"{journal.id!r} of tenant {journal.tenant!r}, {len(journal.prompt)} tokens of prompt,"
        f" {len(journal.output)} of output, {sampling}"
    )
