"""Logs of worker processes, one each, and the last words of one that has ended."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from shuntserve_core.files import file_name

KEPT = 60
"""Logs of engines that a node keeps; the oldest go first."""
_LINES = 12
_TAIL_BYTES = 16384
_LINE_CHARACTERS = 300


def ranks_named(ranks: Sequence[int], worker: int) -> str:
    """What people call the process of these global ranks."""
    if not ranks:
        return f"worker {worker}"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def worker_log(directory: Path, engine_id: str, name: str) -> Path:
    """Where a worker's standard error goes."""
    return directory / f"engine-{file_name(engine_id)}-{file_name(name.replace(', ', '-'))}.log"


def prune(directory: Path) -> None:
    """Remove the oldest logs of engines beyond `KEPT`; what writes to one is not disturbed."""
    with contextlib.suppress(OSError):
        logs = sorted(directory.glob("engine-*.log"), key=lambda path: path.stat().st_mtime)
        for path in logs[:-KEPT]:
            path.unlink(missing_ok=True)


def last_words(path: Path) -> list[str]:
    """The last lines of a log that are not blank, without what would move a terminal's cursor."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return []
    lines = [line.rstrip() for line in text.splitlines()]
    return [_plain(line)[:_LINE_CHARACTERS] for line in lines if line][-_LINES:]


def quoted(log: Path) -> str:
    """A log's name, and its last lines below it."""
    return "\n    ".join([str(log), *last_words(log)])


def _plain(line: str) -> str:
    return "".join(c if c.isprintable() else " " if c == "\t" else "" for c in line)


def ended_how(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"was ended by signal {-code}"
