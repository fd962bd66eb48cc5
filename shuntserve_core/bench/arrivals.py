"""When requests come, and how long they are."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from shuntserve_core.traces.readers import read_requests


@frozen
class Arrival:
    """A request to come."""

    number: int
    at: float | None
    """Seconds after the start; None in a closed loop: when a place is free."""
    input_tokens: int
    output_tokens: int


@frozen
class Lengths:
    """Tokens of a request; `spread` is the largest deviation, as a share of the mean."""

    input_tokens: int
    output_tokens: int
    spread: float = 0.0

    def draw(self, rng: random.Random) -> tuple[int, int]:
        """Lengths of one request, each at least 1."""
        inputs, outputs = (
            max(1, round(mean * rng.uniform(1 - self.spread, 1 + self.spread)))
            for mean in (self.input_tokens, self.output_tokens)
        )
        return inputs, outputs


def closed(requests: int, lengths: Lengths, seed: int) -> Iterator[Arrival]:
    """Requests that each begin when another one ends."""
    rng = random.Random(seed)
    for number in range(requests):
        yield Arrival(number, None, *lengths.draw(rng))


def poisson(requests: int, rate: float, lengths: Lengths, seed: int) -> Iterator[Arrival]:
    """Requests at `rate` a second on average, with exponential gaps."""
    rng = random.Random(seed)
    at = 0.0
    for number in range(requests):
        at += rng.expovariate(rate)
        yield Arrival(number, at, *lengths.draw(rng))


def replay(path: Path, time_scale: float, requests: int | None) -> list[Arrival]:
    """A trace in any form that `read_requests` knows, the first one at once; a `time_scale` of 2
    makes it last twice as long.

    Raises `UserError` with the line that is wrong, before the first request.
    """
    trace = read_requests(path)
    if requests is not None:
        trace = trace.first(requests)
    rows = zip(*trace.scaled(time_scale).columns(), strict=True)
    return [Arrival(number, *row) for number, row in enumerate(rows)]
