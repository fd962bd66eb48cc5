"""Runs parts one after the other, each in a process of its own, and survives all of them."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from attrs import evolve

from gpu_check.catalog import Part
from gpu_check.rows import FAILED, SKIPPED, Row, read_rows

_PR_SET_CHILD_SUBREAPER = 36
_LAST_LINES = 12


def run_all(
    parts: Sequence[Part],
    device: str,
    budget: float,
    logs: Path,
    on_row: Callable[[Row], None] = lambda _: None,
) -> Iterator[Row]:
    """The rows of every part; a part that crashes, hangs or cannot run is a row as well."""
    adopt_orphans()
    end = time.monotonic() + budget
    for part in parts:
        left = end - time.monotonic()
        if device == "cpu" and not part.host:
            rows = [Row(part.name, "all", SKIPPED, note="there is no GPU")]
        elif left < 1.0:
            rows = [Row(part.name, "all", SKIPPED, note=f"no time left of {budget:.0f} s")]
        else:
            limit = part.host_seconds if device == "cpu" else part.seconds
            rows = run_part(part.name, device, min(limit, left), logs / f"{part.name}.log")
        for row in rows:
            on_row(row)
            yield row


def run_part(name: str, device: str, limit: float, log: Path) -> list[Row]:
    """One part's rows, and one more if it did not come to its end."""
    scratch = Path(tempfile.mkdtemp(prefix="gpu-check-"))
    rows_file = scratch / "rows.jsonl"
    command = [sys.executable, "-m", "gpu_check.part", name, "--device", device]
    command += ["--rows", str(rows_file), "--scratch", str(scratch)]
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_children()
    seconds = time.monotonic() - began
    rows = read_rows(rows_file)
    shutil.rmtree(scratch, ignore_errors=True)
    if code != 0 or not rows:
        rows.append(Row(name, "runs to its end", FAILED, note=_why(code, limit, log)))
    return [*rows[:-1], evolve(rows[-1], seconds=round(seconds, 1))]


def _why(code: int | None, limit: float, log: Path) -> str:
    if code is None:
        reason = f"not finished after {limit:.0f} s"
    elif code < 0:
        reason = f"ended by {signal.Signals(-code).name}"
    else:
        reason = f"ended with status {code}"
    said = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    return f"{reason}: {said[-1].strip()[:300]}" if said else reason


def adopt_orphans() -> None:
    """Have processes whose parents die become children of this one, so that they can be ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children() -> None:
    """Kill whatever a part has left, agents in sessions of their own included."""
    own = psutil.Process()
    while children := own.children(recursive=True):
        for child in children:
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(children, timeout=5.0)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
