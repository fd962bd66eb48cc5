"""Readers of workload traces: when requests came and how long they were.

The form is recognised by what the file holds:

* Azure LLM inference traces 2023 (and the wider ones of 2024): CSV with `TIMESTAMP`,
  `ContextTokens`, `GeneratedTokens`.  CC-BY 4.0; cite Patel et al., Splitwise, ISCA 2024.
* Mooncake: a JSON object a line with `timestamp` (milliseconds), `input_length`, `output_length`.
  Apache-2.0, as its repository states; cite Qin et al., Mooncake, FAST 2025.
* Our own: CSV with `at`, `input_tokens`, `output_tokens` (seconds, tokens), after comments with #,
  or JSON: a list of objects with these keys.  Yours.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from shuntserve_core.bench.arrivals import seconds_of
from shuntserve_core.errors import UserError
from shuntserve_core.foreign import parse_json
from shuntserve_core.traces.workload import Requests


class _Form(NamedTuple):
    name: str
    at: str
    prompt: str
    answer: str
    seconds: Callable[[Any], float]
    """Of the first column."""


_FORMS = (
    _Form("azure", "TIMESTAMP", "ContextTokens", "GeneratedTokens", lambda v: seconds_of(str(v))),
    _Form("mooncake", "timestamp", "input_length", "output_length", lambda v: float(v) / 1000),
    _Form("own", "at", "input_tokens", "output_tokens", float),
)
_KNOWN = "; ".join(f"{form.at}, {form.prompt}, {form.answer}" for form in _FORMS)


def read_requests(file: Path) -> Requests:
    """A workload trace in any of the forms above.  Raises `UserError`."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise UserError(
            f"cannot read it: {reason}", where=str(file), remedy="give a file"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8", where=str(file), remedy="save it as UTF-8") from error
    rows = _rows(text, file)
    first = next(rows, None)
    if first is None:
        raise UserError("no requests", where=str(file), remedy=f"give rows with {_KNOWN}")
    form = _form(first[1], file)
    found: list[tuple[float, int, int]] = []
    for where, row in _chain(first, rows):
        try:
            at = form.seconds(row[form.at])
            found.append((at, int(row[form.prompt]), int(row[form.answer])))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"not a request: {error}", where=f"{file}: {where}") from error
    return Requests.of(*zip(*found, strict=True))


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
            skipped, text = _without_comments(text)
            rows = enumerate(csv.DictReader(StringIO(text)), skipped + 2)
            yield from ((f"line {i}", row) for i, row in rows)
    except ValueError as error:
        raise UserError(f"not JSON: {error}", where=str(file), remedy="correct it") from error


def _without_comments(text: str) -> tuple[int, str]:
    """Leave out lines with # in front: how many, and the rest."""
    lines = text.splitlines(keepends=True)
    begin = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return begin, "".join(lines[begin:])


def _form(row: Any, file: Path) -> _Form:
    keys = set(row) if isinstance(row, Mapping) else set()
    for form in _FORMS:
        if {form.at, form.prompt, form.answer} <= keys:
            return form
    raise UserError("not a workload trace", where=str(file), remedy=f"give rows with {_KNOWN}")


def _chain(first: Row, rest: Iterable[Row]) -> Iterator[Row]:
    yield first
    yield from rest
