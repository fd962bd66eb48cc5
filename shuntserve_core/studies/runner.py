"""Running a study: in parallel over cores, and never twice what is done already."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from shuntserve_core.errors import UserError
from shuntserve_core.studies.cells import (
    Cell,
    PlacementJob,
    cells_of,
    key_of,
    make_placement,
    placement_jobs,
    run_cell,
)
from shuntserve_core.studies.study import Study

Show = Callable[[str], None]
"""Told what has been finished."""


def run_study(
    study: Study, base: Path, folder: Path, *, workers: int | None = None
) -> list[dict[str, Any]]:
    """Every run's outcome, in the study's order; kept in `folder` for the next time."""
    workers = workers or os.cpu_count() or 1
    jobs, cells = placement_jobs(study, base), cells_of(study, base)
    needed = {cell.placement.name for cell in cells}
    jobs = {name: job for name, job in jobs.items() if name in needed}
    try:
        for name in ("placements", "runs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or "failed").lower()
        raise UserError(
            f"cannot write {folder}: {reason}", where="--out", remedy="name a folder"
        ) from error
    # A fresh interpreter a worker: nothing of ours is inherited half-way.
    context = multiprocessing.get_context("spawn")
    with (
        _pool(workers, context) as pool,
        _progress(len(jobs) + len(cells)) as show,
    ):
        placements = _placements(pool, list(jobs.values()), folder / "placements", show)
        return _runs(pool, cells, placements, folder / "runs", show)


@contextlib.contextmanager
def _pool(workers: int, context: BaseContext) -> Iterator[ProcessPoolExecutor]:
    """Whose processes end at once where the study does not go on; Ctrl-C is the parent's."""
    arguments = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=signal.signal, initargs=arguments
    )
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


def _placements(
    pool: ProcessPoolExecutor, jobs: Sequence[PlacementJob], folder: Path, show: Show
) -> dict[str, Mapping[str, Any]]:
    files = [folder / f"{key_of(job)}.json" for job in jobs]
    missing = {
        index: pool.submit(make_placement, job)
        for index, (job, file) in enumerate(zip(jobs, files, strict=True))
        if not file.exists()
    }
    found = _gather(files, missing, [f"placement {job.name}" for job in jobs], show)
    return {job.name: placement for job, placement in zip(jobs, found, strict=True)}


def _runs(
    pool: ProcessPoolExecutor,
    cells: Sequence[Cell],
    placements: Mapping[str, Mapping[str, Any]],
    folder: Path,
    show: Show,
) -> list[dict[str, Any]]:
    files = [folder / f"{key_of(cell)}.json" for cell in cells]
    missing = {
        index: pool.submit(run_cell, cell, placements[cell.placement.name])
        for index, (cell, file) in enumerate(zip(cells, files, strict=True))
        if not file.exists()
    }
    return _gather(files, missing, [f"{cell.experiment}: {cell.label}" for cell in cells], show)


def _gather(
    files: Sequence[Path],
    missing: Mapping[int, Future[dict[str, Any]]],
    names: Sequence[str],
    show: Show,
) -> list[dict[str, Any]]:
    """Write each result when it comes, so that an interrupted study goes on where it was."""
    for index, name in enumerate(names):
        if index not in missing:
            show(f"{name} (kept)")
    numbers = {future: index for index, future in missing.items()}
    for future in as_completed(numbers):
        index = numbers[future]
        _write(files[index], future.result())
        show(names[index])
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _write(file: Path, value: Any) -> None:
    """Whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
    part.replace(file)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Show]:
    """A bar on a terminal, a line a result in a pipe; both on standard error."""
    if not sys.stderr.isatty():
        done = [0]

        def line(name: str) -> None:
            done[0] += 1
            sys.stderr.write(f"{done[0]} of {total}: {name}\n")
            sys.stderr.flush()

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("starting", total=total)
        yield lambda name: progress.update(task, advance=1, description=name)
