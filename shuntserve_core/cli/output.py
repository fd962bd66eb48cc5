"""Standard output that holds one JSON document and nothing else.

Libraries print to it, some of them from C: a solver its banner, a downloader its progress.  A
command that was asked for JSON keeps standard output for the document, and everything else that is
printed goes to standard error.
"""

from __future__ import annotations

import io
import os
import sys
from typing import IO, TextIO

import click

from shuntserve_core.quiet import flush_c

_KEY = "shuntserve.json"


def reserve_stdout(ctx: click.Context) -> None:
    """From here on only `write_document` reaches standard output; until the command has ended."""
    root = ctx.find_root()
    if _KEY in root.meta:
        return
    before = sys.stdout
    before.flush()
    flush_c()
    try:
        document: IO[str] = os.fdopen(os.dup(before.fileno()), "w", encoding="utf-8")
    except (OSError, io.UnsupportedOperation):  # replaced by one in memory
        document = before
    kept = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    root.meta[_KEY] = document
    root.call_on_close(lambda: _restore(before, document, kept))


def write_document(text: str) -> None:
    """Write to standard output, reserved or not."""
    ctx = click.get_current_context(silent=True)
    reserved: IO[str] | None = ctx.find_root().meta.get(_KEY) if ctx else None
    click.echo(text, file=reserved)


def _restore(before: TextIO, document: IO[str], kept: int) -> None:
    document.flush()
    if document is not before:
        document.close()
    sys.stdout.flush()
    sys.stdout = before
    flush_c()  # what C code has printed and not written yet goes where the rest went
    os.dup2(kept, 1)
    os.close(kept)
