"""Progress of long work in bytes: a bar on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import click

PLAIN_SECONDS = 5.0
"""Between two lines in a pipe."""

Advance = Callable[[int], None]
"""Called with bytes done since the last call, by any thread."""


@contextlib.contextmanager
def byte_progress(what: str, total: int, *, quiet: bool = False) -> Iterator[Advance]:
    """Show bytes done, rate and time left on standard error."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar(what, total) as advance:
            yield advance
    else:
        yield _Lines(what, total).advance


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


class _Lines:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._started = self._printed = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._printed < PLAIN_SECONDS:
            return
        self._printed = now
        rate = self._done / (now - self._started)
        left = (self._total - self._done) / rate if rate else 0
        click.echo(
            f"{self._what}: {human_bytes(self._done)} of {human_bytes(self._total)}, "
            f"{human_bytes(rate)}/s, {left:.0f} s left",
            err=True,
        )


def human_bytes(count: float) -> str:
    """Bytes in decimal units, three digits or so."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"
