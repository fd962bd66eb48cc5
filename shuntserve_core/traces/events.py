"""Interruption traces in our own form: CSV with the columns `at,node,kind,notice,market`.

`at` is seconds from the start; `kind` one of `notice`, `rebalance`, `withdrawn`, `lost`,
`restored`; `notice`, seconds between a notice and its deadline, may be empty; so may `market`, at
whose price the simulator bills a node that is restored, and both columns may be missing.  JSON is a
list of objects with the same keys.  Lines that begin with # are comments.
Either may be compressed with gzip.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from attrs import frozen

from shuntserve_core.errors import UserError, did_you_mean
from shuntserve_core.foreign import parse_json
from shuntserve_core.traces.readers import text_of
from shuntserve_core.types.spot import EVENT_KINDS

COLUMNS = ("at", "node", "kind", "notice", "market")
MARKETS = ("spot", "on-demand")


@frozen
class TraceEvent:
    """One line of a trace."""

    at: float
    """Seconds from the start."""
    node: str
    kind: str
    notice: float | None = None
    """Seconds between the notice and its deadline."""
    market: str = ""
    """`spot`, `on-demand`, or empty for what the cluster's offer says."""


def read_events(file: Path) -> tuple[TraceEvent, ...]:
    """The events of a trace in the order of their times.  Raises `UserError`."""
    try:
        text = text_of(file)
        is_json = file.name.removesuffix(".gz").endswith(".json")
        rows = _json_rows(text) if is_json else _csv_rows(text)
    except (ValueError, csv.Error) as error:
        columns = ",".join(COLUMNS)
        raise UserError(
            f"not a trace: {error}", where=str(file), remedy=f"write CSV with the columns {columns}"
        ) from error
    events = [_event(row, f"{file}: {number}") for number, row in rows]
    return tuple(sorted(events, key=lambda event: event.at))


def _csv_rows(text: str) -> list[tuple[str, dict[str, Any]]]:
    lines = ["" if line.startswith("#") else line for line in text.splitlines()]
    begin = next((number for number, line in enumerate(lines) if line), 0)
    reader = csv.DictReader(lines[begin:])
    missing = set(COLUMNS[:3]) - set(reader.fieldnames or ())
    if missing:
        raise ValueError(f"no column {min(missing)}")
    return [(f"line {begin + reader.line_num}", row) for row in reader]


def _json_rows(text: str) -> list[tuple[str, dict[str, Any]]]:
    data = parse_json(text, large=True)
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise ValueError("it must be a list of objects")
    return [(f"event {number}", row) for number, row in enumerate(data)]


def _event(row: dict[str, Any], where: str) -> TraceEvent:
    try:
        at = float(row["at"])
        notice = None if row.get("notice") in (None, "") else float(row["notice"])
        node, kind = str(row["node"]), str(row["kind"])
        market = str(row.get("market") or "")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"not an event: {error}", where=where, remedy="at and notice are seconds"
        ) from error
    if kind not in EVENT_KINDS:
        raise UserError(
            f"unknown kind {kind!r}", where=where, remedy=did_you_mean(kind, EVENT_KINDS)
        )
    if market not in ("", *MARKETS):
        remedy = did_you_mean(market, MARKETS)
        raise UserError(f"unknown market {market!r}", where=where, remedy=remedy)
    for seconds in (at, notice or 0.0):
        if not 0 <= seconds < math.inf:
            reason = "a time before the start" if seconds < 0 else f"not a time: {seconds}"
            raise UserError(reason, where=where, remedy="give seconds of at least 0")
    return TraceEvent(at, node, kind, notice, market)
