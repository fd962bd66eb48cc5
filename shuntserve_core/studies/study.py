"""A study's TOML file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen
from attrs.validators import ge, gt, optional

from shuntserve_core.config.loader import read_toml
from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.config.structure import make_converter
from shuntserve_core.errors import UserError, did_you_mean
from shuntserve_core.simulator.recovery import STRATEGIES

_positive = optional(gt(0))


@frozen
class StudyTable:
    """What it is about."""

    title: str
    """Of the report."""
    about: str = ""
    """Paragraphs under the title, separated by empty lines."""


@frozen
class PlacementTable:
    """Pipelines to simulate: given, or found by optimizers."""

    config: str
    """Configuration file, relative to the study."""
    name: str = ""
    """What it is called; by default the optimizer's name (and the estimator's, if several)."""
    pipelines: tuple[str, ...] = ()
    """Stages as for `shuntserve estimate --pipeline`; empty to have optimizers search."""
    optimizers: tuple[str, ...] = ()
    """Which ones search; by default the configuration's."""
    estimators: tuple[str, ...] = ()
    """What they search with, and what balancers and limits of requests come from; by default the
    configuration's."""


@frozen
class WorkloadTable:
    """Requests."""

    name: str
    """What it is called."""
    trace: str | None = None
    """Trace file, relative to the study; None for synthetic requests."""
    longest: int | None = field(default=None, validator=optional(ge(1)))
    """Leave out requests with a longer prompt or answer, tokens."""
    first: float | None = field(default=None, validator=_positive)
    """Only so many seconds of the trace."""
    requests: int | None = field(default=None, validator=optional(ge(1)))
    """Only so many requests."""
    time_scale: float = field(default=1.0, validator=ge(0))
    """Factor on arrival times; 0 has all come at once."""
    rate: float | None = field(default=None, validator=_positive)
    """Synthetic requests per second, with lengths drawn from the trace or of the configuration."""
    variation: float = field(default=1.0, validator=ge(0))
    """Of synthetic gaps: their deviation over their mean; 1 is Poisson."""
    seed: int = 0
    """Of synthetic requests."""
    duration: float | None = field(default=None, validator=_positive)
    """Virtual seconds after which the run ends."""


@frozen
class EventsTable:
    """Interruptions."""

    name: str
    """What it is called."""
    file: str
    """Trace file, relative to the study."""
    instance: str | None = None
    """The only instance type that a foreign trace is applied to."""


@frozen
class ExperimentTable:
    """Every combination of what it lists is one run."""

    name: str
    """Its heading in the report."""
    placements: tuple[str, ...] = ()
    """Names; empty for all."""
    workloads: tuple[str, ...] = ()
    """Names; empty for all."""
    events: tuple[str, ...] = ()
    """Names; empty for none."""
    strategies: tuple[str, ...] = ("shuntserve",)
    """Of `shuntserve`, `concurrent-init`, `migration`, `none`, `on-demand`."""
    profiles: tuple[str, ...] = ("vllm",)
    """Engine profiles: names, or JSON files relative to the study."""
    recovery: Mapping[str, Any] = field(factory=dict)
    """Options of `Recovery`, such as `boot_seconds`."""
    measured: Mapping[str, float] = field(factory=dict)
    """Requests per second that were measured, by the run's label, to compare with."""
    note: str = ""
    """Paragraphs under the heading."""


@frozen
class Study:
    """The whole file."""

    study: StudyTable
    placement: tuple[PlacementTable, ...]
    workload: tuple[WorkloadTable, ...]
    experiment: tuple[ExperimentTable, ...]
    events: tuple[EventsTable, ...] = ()


def is_study(file: Path) -> bool:
    """Whether a TOML file is a study rather than a configuration.  Raises `UserError`."""
    return "study" in read_toml(file)


def read_study(file: Path) -> Study:
    """Read and check a study.  Raises `UserError` with every mistake."""
    mistakes = Mistakes(str(file))
    study = None
    try:
        study = make_converter(lambda *_: None).structure(read_toml(file), Study)
    except UserError:
        raise
    except Exception as error:  # cattrs' own groups
        mistakes.add_structure_error(error, "")
    if study is not None:
        _check(study, mistakes)
    mistakes.raise_if_any()
    assert study is not None
    return study


def _check(study: Study, mistakes: Mistakes) -> None:
    known: dict[str, Iterable[str]] = {
        "workloads": [table.name for table in study.workload],
        "events": [table.name for table in study.events],
        "strategies": STRATEGIES,
    }
    if names := [name for table in study.placement for name in placement_names(table)]:
        known["placements"] = names
    for key, allowed in known.items():
        for index, experiment in enumerate(study.experiment):
            _check_names(f"experiment[{index}].{key}", getattr(experiment, key), allowed, mistakes)
    for index, table in enumerate(study.workload):
        if table.trace is None and table.rate is None:
            mistakes.add(f"workload[{index}]", "neither trace nor rate", "give one of them")


def _check_names(
    where: str, given: Iterable[str], known: Iterable[str], mistakes: Mistakes
) -> None:
    for name in given:
        if name not in known:
            mistakes.add(where, f'unknown name "{name}"', did_you_mean(name, known))


def placement_names(table: PlacementTable) -> list[str]:
    """What a table's placements are called, in the order of `placement_choices`."""
    choices = placement_choices(table)
    several = len({estimator for _, estimator in choices}) > 1
    if len(choices) == 1 and table.name:
        return [table.name]
    names = []
    for optimizer, estimator in choices:
        name = optimizer or "configured"
        names.append(f"{name} on {estimator}" if several else name)
    return [f"{table.name}: {name}" if table.name else name for name in names]


def placement_choices(table: PlacementTable) -> list[tuple[str | None, str | None]]:
    """(optimizer, estimator) of each placement; None is the configuration's."""
    optimizers: tuple[str | None, ...] = table.optimizers or (None,)
    estimators: tuple[str | None, ...] = table.estimators or (None,)
    return [(o, e) for o in optimizers for e in estimators]
