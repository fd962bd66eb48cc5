"""Interruption traces that others published, as events of our own form.

* SkyPilot spot traces: JSON with `metadata.gap_seconds` and `data`, the instances that were to be
  had at each tick.  No licence is stated: read it, do not pass it on; cite Wu et al., "Can't be
  late", NSDI 2024.
* SpotServe segments: a JSON list a line, milliseconds, `add`, `remove` or `DONE`, and nodes.
  Apache-2.0, as its repository states; cite Miao et al., SpotServe, ASPLOS 2024.
* SpotLake: CSV, or CSV in gzip, of snapshots with `Time`, `InstanceType`, `AZ` and scores.  The
  2025 sample is CC BY-NC 4.0, not for commerce; cite Lee et al., SpotLake, IISWC 2022.

The first two say nothing of our instance types: what they tell is applied to every type of the
cluster in proportion to its count, or to the one that is asked for.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import frozen

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json
from shuntserve_core.traces.events import TraceEvent, read_events
from shuntserve_core.traces.readers import GZIP, text_of
from shuntserve_core.types import Cluster


def read_any_events(
    file: Path, cluster: Cluster, instance: str | None = None
) -> tuple[TraceEvent, ...]:
    """A trace in our own form or one of those above, for a cluster.  Raises `UserError`.

    `instance` is the only type that a foreign trace is applied to; by default all are.
    """
    counts = dict(cluster.counts) if instance is None else {instance: cluster.counts[instance]}
    try:
        head = _beginning(file)
        if head.startswith("{"):
            return skypilot_events(file, counts)
        if re.match(r"\[\s*\d", head):
            return spotserve_events(file, counts)
        if "InstanceType" in head.partition("\n")[0]:
            return spotlake_events(file, counts)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        reason = f"not a whole gzip file: {error}"
        raise UserError(reason, where=str(file), remedy="fetch it again") from error
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise UserError(
            f"cannot read it: {reason}", where=str(file), remedy="give a file"
        ) from error
    except (KeyError, TypeError, ValueError, IndexError, csv.Error) as error:
        raise UserError(
            f"not a spot trace: {error}", where=str(file), remedy="see docs/how-to/simulate.md"
        ) from error
    return read_events(file)


def _open(file: Path) -> Any:
    with file.open("rb") as beginning:
        compressed = beginning.read(2) == GZIP
    if compressed:
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _beginning(file: Path) -> str:
    """Some of it, after comments."""
    with _open(file) as text:
        return "".join(line for line in text.read(4096).splitlines(True) if line[0] != "#").lstrip()


@frozen
class Availability:
    """How many instances of a type there are, from a time on."""

    at: float
    """Seconds from the start."""
    count: int


def events_of(instance: str, count: int, levels: Iterable[Availability]) -> Iterator[TraceEvent]:
    """Notices and returns that keep the nodes in use within what there is.

    All `count` nodes are there at the start.  Those with the highest numbers go first.
    """
    up = count
    for level in levels:
        there = min(max(level.count, 0), count)
        for number in range(up - 1, there - 1, -1):
            yield TraceEvent(level.at, f"{instance}#{number}", "notice")
        for number in range(up, there):
            yield TraceEvent(level.at, f"{instance}#{number}", "restored")
        up = there


def _sorted(events: Iterable[TraceEvent]) -> tuple[TraceEvent, ...]:
    return tuple(sorted(events, key=lambda event: event.at))


def skypilot_events(file: Path, counts: Mapping[str, int]) -> tuple[TraceEvent, ...]:
    """Each type has the share of its nodes that the trace has of its greatest level."""
    data = parse_json(text_of(file), large=True)
    gap, levels = float(data["metadata"]["gap_seconds"]), [float(x) for x in data["data"]]
    most = max(levels) or 1.0
    return _sorted(
        event
        for instance, count in counts.items()
        for event in events_of(
            instance,
            count,
            (Availability(i * gap, int(count * x / most)) for i, x in enumerate(levels)),
        )
    )


def spotserve_events(file: Path, counts: Mapping[str, int]) -> tuple[TraceEvent, ...]:
    """The trace's nodes, in the order in which they come, are the cluster's; more are left out."""
    names = [f"{instance}#{i}" for instance, count in counts.items() for i in range(count)]
    free, places, events = list(names), dict[str, str](), []
    for line in text_of(file).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        at, kind, facts = parse_json(line, large=True)
        for node in facts["nodes"]:
            if kind == "add" and free:
                places[node] = free.pop(0)
                if at > 0:
                    events.append(TraceEvent(at / 1000, places[node], "restored"))
            elif kind == "remove" and node in places:
                name = places.pop(node)
                free.append(name)
                events.append(TraceEvent(at / 1000, name, "notice"))
    starting = {event.node for event in events if event.kind == "restored"}
    absent = [name for name in names if name in starting or name in free]
    gone = [name for name in absent if _first(events, name) != "notice"]
    return _sorted([*(TraceEvent(0.0, name, "lost") for name in gone), *events])


def _first(events: Sequence[TraceEvent], node: str) -> str:
    return next((event.kind for event in events if event.node == node), "")


def spotlake_events(file: Path, counts: Mapping[str, int]) -> tuple[TraceEvent, ...]:
    """What snapshots say could be had in the zone where each type could be had best.

    The count is `T3`, the largest capacity with a placement score of 3 or more; where that column
    is missing, all of a type at a score of 3, and none below.
    """
    rows = [row for row in _snapshots(file) if row.instance in counts]
    if not rows:
        raise ValueError(f"no snapshot of {', '.join(counts)}")
    begin = min(row.at for row in rows)
    events: list[TraceEvent] = []
    for instance, count in counts.items():
        own = [row for row in rows if row.instance == instance]
        zones: dict[str, list[Availability]] = {}
        for row in sorted(own, key=lambda row: row.at):
            level = count if row.capacity is None and row.score >= 3 else row.capacity or 0
            zones.setdefault(row.zone, []).append(Availability(row.at - begin, level))
        if zones:
            best = max(zones.values(), key=lambda levels: sum(min(x.count, count) for x in levels))
            events += events_of(instance, count, best)
    return _sorted(events)


@frozen
class Snapshot:
    """A line of SpotLake: one instance type in one zone at one time."""

    at: float
    """Seconds since the epoch."""
    instance: str
    zone: str
    score: float
    """Spot placement score; -1 where missing."""
    capacity: int | None
    """Largest target capacity with a score of 3 or more; None where not recorded."""
    spot_price: float | None
    """$ per hour."""
    price: float | None
    """On demand, $ per hour."""


def _snapshots(file: Path) -> Iterator[Snapshot]:
    with _open(file) as lines:
        for row in csv.DictReader(lines):
            moment = datetime.fromisoformat(row["Time"])
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            capacity = _number(row.get("T3"))
            yield Snapshot(
                at=moment.timestamp(),
                instance=row["InstanceType"],
                zone=f"{row.get('Region') or ''}/{row.get('AZ') or ''}",
                score=_number(row.get("SPS")) or -1.0,
                capacity=None if capacity is None else int(capacity),
                spot_price=_number(row.get("SpotPrice")),
                price=_number(row.get("OndemandPrice")),
            )


def read_spotlake(file: Path) -> tuple[Snapshot, ...]:
    """Every line of a SpotLake file, prices included.  Raises `UserError`."""
    try:
        return tuple(_snapshots(file))
    except (OSError, EOFError, zlib.error, csv.Error, KeyError, ValueError) as error:
        raise UserError(
            f"not a SpotLake file: {error}", where=str(file), remedy="see docs/how-to/simulate.md"
        ) from error


def _number(text: str | None) -> float | None:
    """A figure; empty, and the older files' -1, are None."""
    if text is None or not text.strip() or float(text) < 0:
        return None
    return float(text)
