"""What a study runs: placements first, then every combination of each experiment."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from attrs import asdict, evolve, field, fields, frozen

from shuntserve_core import __version__
from shuntserve_core.config.loader import Config, load_config
from shuntserve_core.config.suited import refuse_or_note
from shuntserve_core.errors import UserError, did_you_mean
from shuntserve_core.placement_json import placement_from_json, placement_to_json
from shuntserve_core.simulator.files import read_profile
from shuntserve_core.simulator.placing import place, spares_of
from shuntserve_core.simulator.recovery import Recovery
from shuntserve_core.simulator.run import Setting, simulate
from shuntserve_core.studies.study import (
    EventsTable,
    PlacementTable,
    Study,
    WorkloadTable,
    placement_choices,
    placement_names,
)
from shuntserve_core.traces.readers import read_requests
from shuntserve_core.traces.spot import read_any_events
from shuntserve_core.traces.synthetic import synthetic
from shuntserve_core.traces.workload import Requests
from shuntserve_core.types import Placement

QUANTILES = tuple(range(101))
BINS = 120
"""Of a timeline."""
FORMAT = 1
"""Of what is kept; a change of the simulator's meaning raises it, so that nothing old is reused."""


@frozen
class PlacementJob:
    """A placement to make."""

    name: str
    config: str
    """Path."""
    pipelines: tuple[str, ...] = ()
    optimizer: str | None = None
    estimator: str | None = None


@frozen
class Cell:
    """A run to make."""

    experiment: str
    label: str
    """What tells it from the other runs of its experiment."""
    placement: PlacementJob
    workload: WorkloadTable
    base: str
    """Directory that the study's paths are relative to."""
    strategy: str
    profile: str
    events: EventsTable | None = None
    recovery: Mapping[str, Any] = field(factory=dict)


def placement_jobs(study: Study, base: Path) -> dict[str, PlacementJob]:
    """Every placement of the study, by name."""
    jobs: dict[str, PlacementJob] = {}
    for table in study.placement:
        for job in _jobs_of(table, base):
            jobs[job.name] = job
    return jobs


def _jobs_of(table: PlacementTable, base: Path) -> Iterator[PlacementJob]:
    config = str((base / table.config).resolve())
    choices = zip(placement_names(table), placement_choices(table), strict=True)
    for name, (optimizer, estimator) in choices:
        yield PlacementJob(name, config, table.pipelines, optimizer, estimator)


def cells_of(study: Study, base: Path) -> list[Cell]:
    """Every run of the study."""
    jobs = placement_jobs(study, base)
    workloads = {table.name: table for table in study.workload}
    events: dict[str, EventsTable | None] = {table.name: table for table in study.events}
    cells = []
    for experiment in study.experiment:
        axes: list[list[str]] = [
            list(experiment.placements or jobs),
            list(experiment.workloads or workloads),
            list(experiment.events) or [""],
            list(experiment.strategies),
            list(experiment.profiles),
        ]
        for choice in product(*axes):
            placement, workload, event, strategy, profile = choice
            told = [name for name, axis in zip(choice, axes, strict=True) if len(axis) > 1]
            cells.append(
                Cell(
                    experiment=experiment.name,
                    label=", ".join(told) or placement,
                    placement=jobs[placement],
                    workload=workloads[workload],
                    base=str(base),
                    strategy=strategy,
                    profile=profile,
                    events=events.get(event),
                    recovery=dict(experiment.recovery),
                )
            )
    return cells


def key_of(job: PlacementJob | Cell) -> str:
    """A digest of everything that a result depends on, files included."""
    digest = hashlib.sha256()
    digest.update(f"{__version__} {FORMAT} ".encode())
    digest.update(json.dumps(asdict(job), sort_keys=True, default=str).encode())
    for file in _files(job):
        digest.update(file.read_bytes() if file.is_file() else b"-")
    return digest.hexdigest()[:20]


def _files(job: PlacementJob | Cell) -> list[Path]:
    if isinstance(job, PlacementJob):
        return [Path(job.config)]
    base = Path(job.base)
    names = [job.workload.trace, job.events.file if job.events else None, job.profile]
    return [Path(job.placement.config), *(base / name for name in names if name)]


def make_placement(job: PlacementJob) -> dict[str, Any]:
    """A placement as JSON; or the reason why there is none, under `error`."""
    try:
        config = load_config(job.config)
        refuse_or_note(config)
        if job.pipelines:
            from shuntserve_core.planning.written import estimate_pipelines, parse_pipeline

            chosen = [parse_pipeline(text, config) for text in job.pipelines]
            placement = estimate_pipelines(config, chosen, job.estimator)
        else:
            placement = place(config, job.optimizer, job.estimator)
        return placement_to_json(placement, config.workload)
    except UserError as error:
        return {"error": str(error)}


def run_cell(cell: Cell, placement: Mapping[str, Any]) -> dict[str, Any]:
    """Simulate, and keep what tables and figures need."""
    about = {
        "experiment": cell.experiment,
        "label": cell.label,
        "placement": cell.placement.name,
        "workload": cell.workload.name,
        "events": cell.events.name if cell.events else "",
        "strategy": cell.strategy,
        "profile": cell.profile,
        "error": str(placement.get("error", "")),
    }
    if about["error"]:
        return about
    try:
        return about | _run(cell, placement_from_json(placement))
    except UserError as error:
        return about | {"error": str(error)}


def _run(cell: Cell, placement: Placement) -> dict[str, Any]:
    config = load_config(cell.placement.config)
    table, estimator = config.document.estimator, cell.placement.estimator
    if estimator and estimator != table.name:
        table = evolve(table, name=estimator, options={})
        config = evolve(config, document=evolve(config.document, estimator=table))
    base = Path(cell.base)
    events = cell.events
    profile = str(base / cell.profile) if cell.profile.endswith(".json") else cell.profile
    setting = Setting(
        profile=read_profile(profile),
        recovery=_recovery(cell),
        events=()
        if events is None
        else read_any_events(base / events.file, config.cluster, events.instance),
        spares=spares_of(config, placement),
        duration=cell.workload.duration or math.inf,
    )
    result = simulate(config, placement, requests_of(cell.workload, base, config), setting)
    _, ttft, tpot = result.times()
    return {
        "predicted_rps": placement.throughput_rps,
        "summary": result.summary(),
        "ttft_quantiles": _quantiles(result.ttft_after_queue()),
        "ttft_from_arrival_quantiles": _quantiles(ttft),
        "tpot_quantiles": _quantiles(tpot),
        "timeline": result.timeline(max(result.seconds / BINS, 1.0)),
        "pipelines": list(result.pipelines),
        "notes": [{"at": n.at, "what": n.what, **n.facts} for n in result.notes],
    }


def _recovery(cell: Cell) -> Recovery:
    known = [attribute.name for attribute in fields(Recovery)]
    for name in cell.recovery:
        if name not in known:
            raise UserError(
                f'unknown option "{name}"',
                where="experiment.recovery",
                remedy=did_you_mean(name, known),
            )
    try:
        return Recovery(**{**cell.recovery, "strategy": cell.strategy})
    except (TypeError, ValueError) as error:
        raise UserError(
            str(error), where="experiment.recovery", remedy="correct it in the study's file"
        ) from error


def requests_of(table: WorkloadTable, base: Path, config: Config) -> Requests:
    """The requests that a study's table describes.  Raises `UserError`."""
    lengths = config.workload.lengths
    lengths = lengths or ((config.workload.input_tokens, config.workload.output_tokens),)
    requests = None
    if table.trace is not None:
        requests = read_requests(base / table.trace)
        if table.longest is not None:
            requests = requests.at_most(table.longest)
        if table.first is not None:
            requests = requests.between(0.0, table.first)
        lengths = requests.lengths
    if table.rate is not None:
        count = table.requests or (1000 if requests is None else len(requests))
        requests = synthetic(count, table.rate, lengths, variation=table.variation, seed=table.seed)
    assert requests is not None  # the study was checked
    if table.requests is not None:
        requests = requests.first(table.requests)
    return requests.scaled(table.time_scale)


def _quantiles(values: Any) -> list[float]:
    return np.percentile(values, QUANTILES).tolist() if len(values) else []
