"""When requests come, and how long they are."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from pathlib import Path

from attrs import frozen

from shuntserve_core.errors import UserError

TRACE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
"""As in the Azure LLM inference traces."""


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


def replay(path: Path, time_scale: float, requests: int | None) -> Iterator[Arrival]:
    """A trace with the columns `TRACE_COLUMNS`; a `time_scale` of 2 makes it last twice as long.

    Raises `UserError` with the line that is wrong.
    """
    begin: float | None = None
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = set(TRACE_COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise UserError(
                f"no column {', '.join(sorted(missing))}",
                where=str(path),
                remedy=f"a trace has the columns {', '.join(TRACE_COLUMNS)}",
            )
        for number, row in zip(count(), reader, strict=False):
            if number == requests:
                return
            try:
                at = seconds_of(row["TIMESTAMP"])
                lengths = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            except (TypeError, ValueError) as error:
                raise UserError(str(error), where=f"{path}, line {reader.line_num}") from error
            begin = at if begin is None else begin
            yield Arrival(number, max(0.0, at - begin) * time_scale, max(1, lengths[0]), lengths[1])


def seconds_of(text: str) -> float:
    """A number of seconds, or a date and time with up to seven decimals."""
    try:
        return float(text)
    except ValueError:
        head, dot, fraction = text.strip().partition(".")
        # The published traces have seven decimals, one more than a datetime holds.
        digits = "".join(c for c in fraction if c.isdigit()) if dot else ""
        moment = datetime.fromisoformat(head)
        return moment.timestamp() + (int(digits) / 10 ** len(digits) if digits else 0.0)
