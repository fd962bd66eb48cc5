"""Readers of workload traces: when requests came and how long they were.

The form is recognised by what the file holds:

* Azure LLM inference traces 2023 (and the wider ones of 2024): CSV with `TIMESTAMP`,
  `ContextTokens`, `GeneratedTokens`.  CC-BY 4.0; cite Patel et al., Splitwise, ISCA 2024.
* Mooncake: a JSON object a line with `timestamp` (milliseconds), `input_length`, `output_length`.
  Apache-2.0, as its repository states; cite Qin et al., Mooncake, FAST 2025.
* Our own: CSV with `at`, `input_tokens`, `output_tokens` (seconds, tokens), after comments with #,
  or JSON: a list of objects with these keys.  Yours.

Any of them may be compressed with gzip.  Lengths are whole numbers of tokens; 0 counts as 1, as
published traces hold requests that got no answer.
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple

from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json, read_any
from shuntserve_core.traces.workload import Requests

LONGEST = 10_000_000
"""Tokens of the longest prompt or answer that is believed."""
MOST_BYTES = 1 << 30
"""Of a trace, also once it is decompressed: a year of requests of a busy service."""
GZIP = b"\x1f\x8b"
"""How files begin that gzip has compressed."""


def seconds_of(value: Any) -> float:
    """A number of seconds, or a date and time, of which a zone that is not named is UTC.

    Raises `ValueError`.
    """
    text = str(value).strip()
    try:
        return float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return moment.timestamp()


class _Form(NamedTuple):
    name: str
    at: str
    prompt: str
    answer: str
    seconds: Callable[[Any], float]
    """Of the first column."""

    def columns(self, *, timed: bool) -> tuple[str, ...]:
        return (self.at, self.prompt, self.answer) if timed else (self.prompt, self.answer)

    def read(self, row: Mapping[str, Any], *, timed: bool) -> tuple[float, int, int]:
        """Raises `ValueError` with the column that is wrong."""
        at = self._time(row.get(self.at)) if timed else 0.0
        return at, _tokens(self.prompt, row), _tokens(self.answer, row)

    def _time(self, value: Any) -> float:
        try:
            at = self.seconds(value)
        except (TypeError, ValueError):
            at = math.nan
        if not math.isfinite(at):
            raise ValueError(f"{self.at} is {_shown(value)}, expected a time")
        return at


def _tokens(column: str, row: Mapping[str, Any]) -> int:
    value = row.get(column)
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (0 <= number <= LONGEST and number == int(number)):
        wanted = f"a whole number of tokens from 0 to {LONGEST}"
        raise ValueError(f"{column} is {_shown(value)}, expected {wanted}")
    return int(number)


def _shown(value: Any) -> str:
    blank = value is None or not str(value).strip()
    return "blank" if blank else repr(value)[:40]


_FORMS = (
    _Form("azure", "TIMESTAMP", "ContextTokens", "GeneratedTokens", seconds_of),
    _Form("mooncake", "timestamp", "input_length", "output_length", lambda v: float(v) / 1000),
    _Form("own", "at", "input_tokens", "output_tokens", float),
)
_KNOWN = "; ".join(f"{form.at}, {form.prompt}, {form.answer}" for form in _FORMS)


def read_requests(file: Path, *, timed: bool = True) -> Requests:
    """A workload trace in any of the forms above; without times where only lengths matter.

    Raises `UserError` with the line that is wrong.
    """
    rows = _rows(text_of(file), file)
    first = next(rows, None)
    if first is None:
        raise UserError("no requests", where=str(file), remedy=f"give rows with {_KNOWN}")
    form = _form(first[1], file, timed=timed)
    found: list[tuple[float, int, int]] = []
    for where, row in _chain(first, rows):
        try:
            found.append(form.read(row, timed=timed))
        except (AttributeError, ValueError) as error:
            reason = "not an object" if isinstance(error, AttributeError) else error
            raise UserError(
                f"not a request: {reason}",
                where=f"{file}: {where}",
                remedy="correct it, or leave it out",
            ) from error
    return Requests.of(*zip(*found, strict=True))


def text_of(file: Path) -> str:
    """A text file, also one that gzip has compressed, whatever its name.  Raises `UserError`."""
    try:
        data = read_any(file, MOST_BYTES)
        if data.startswith(GZIP):
            with gzip.GzipFile(fileobj=BytesIO(data)) as compressed:
                data = compressed.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                reason = f"holds more than the {MOST_BYTES} bytes that make sense"
                raise UserError(reason, where=str(file), remedy="give a part of it")
        return data.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"not a whole gzip file: {error}", where=str(file), remedy="fetch it again"
        ) from error
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise UserError(
            f"cannot read it: {reason}", where=str(file), remedy="give a file"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8", where=str(file), remedy="save it as UTF-8") from error


Row = tuple[str, Mapping[str, Any]]
"""Where it stands, and what it says."""


def _rows(text: str, file: Path) -> Iterator[Row]:
    try:
        if text.lstrip().startswith("["):
            yield from ((f"request {i}", row) for i, row in enumerate(parse_json(text, large=True)))
        elif text.lstrip().startswith("{"):
            lines = enumerate(text.splitlines(), 1)
            yield from (
                (f"line {i}", parse_json(line, large=True)) for i, line in lines if line.strip()
            )
        else:
            yield from _csv_rows(text)
    except ValueError as error:
        raise UserError(
            f"not a workload trace: not JSON: {error}",
            where=str(file),
            remedy=f"give rows with {_KNOWN}",
        ) from error
    except csv.Error as error:
        remedy = "save it as CSV in UTF-8"
        raise UserError(f"not CSV: {error}", where=str(file), remedy=remedy) from error


def _csv_rows(text: str) -> Iterator[Row]:
    skipped, text = _without_comments(text)
    reader = csv.DictReader(StringIO(text))
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    yield from ((f"line {skipped + reader.line_num}", row) for row in reader)


def _without_comments(text: str) -> tuple[int, str]:
    """Leave out lines with # in front: how many, and the rest."""
    lines = text.splitlines(keepends=True)
    begin = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return begin, "".join(lines[begin:])


def _form(row: Any, file: Path, *, timed: bool) -> _Form:
    keys = set(row) if isinstance(row, Mapping) else set()
    lacking = [[c for c in form.columns(timed=timed) if c not in keys] for form in _FORMS]
    columns, form = min(zip(lacking, _FORMS, strict=True), key=lambda pair: len(pair[0]))
    if not columns:
        return form
    near = len(columns) < len(form.columns(timed=timed))
    reason = f": no column {', '.join(columns)}" if near else ""
    raise UserError(
        f"not a workload trace{reason}", where=str(file), remedy=f"give rows with {_KNOWN}"
    )


def _chain(first: Row, rest: Iterable[Row]) -> Iterator[Row]:
    yield first
    yield from rest
