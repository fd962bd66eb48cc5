"""From a configuration to what its plugins make of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from attrs import evolve

from shuntserve_core.config.loader import Config, read_toml
from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.config.options import structure_options
from shuntserve_core.config.serving import FrontDoorTable
from shuntserve_core.errors import UserError
from shuntserve_core.registry import Registry

if TYPE_CHECKING:
    from shuntserve_core.interfaces.balancer import Balancer
    from shuntserve_core.interfaces.cloud import SpotSource
    from shuntserve_core.interfaces.engine import Engine
    from shuntserve_core.interfaces.estimator import BoundEstimator, Estimator
    from shuntserve_core.interfaces.frontdoor import FrontDoor
    from shuntserve_core.interfaces.launcher import Launcher
    from shuntserve_core.interfaces.optimizer import Optimizer, Problem
    from shuntserve_core.types import EngineFacts, InstanceType


def optimizer_from(config: Config, name: str | None = None) -> Optimizer:
    """The configured optimizer, or another by name, which then has its default options."""
    return plugin_from(config, "optimizer", config.document.optimizer, name)


def estimator_from(
    config: Config,
    name: str | None = None,
    *,
    catalog: Mapping[str, InstanceType] | None = None,
) -> BoundEstimator:
    """The configured estimator, or another by name, bound to the model and the workload.

    `catalog` is what pipelines may use; by default the cluster's instance types.
    """
    estimator = plugin_from(config, "estimator", config.document.estimator, name)
    estimator = for_engine(config, estimator, firmly=config.engine_said)
    return estimator.bind(
        config.model, config.workload, config.cluster.catalog if catalog is None else catalog
    )


def engine_facts(config: Config) -> EngineFacts:
    """What the engine's plugin says of its steps, within what `[serve]` allows.

    An engine that cannot be imported here, as where plans are made without it, says nothing.
    """
    from shuntserve_core.interfaces.engine import Engine
    from shuntserve_core.types import EngineFacts

    try:
        engine = plugin_from(config, "engine", config.document.engine)
    except UserError as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        facts = EngineFacts()
    else:  # a plugin may lack the word for it
        facts = engine.facts() if hasattr(engine, "facts") else Engine.facts(engine)
        _refuse_other(facts, EngineFacts, config, "engine", "facts")
    limits = [n for n in (facts.sequences, config.document.serve.max_batch) if n is not None]
    return evolve(facts, sequences=min(limits, default=None))


def _refuse_other(found: object, wanted: type, config: Config, kind: str, method: str) -> None:
    """Raise `UserError` that names the plugin where it did not keep to its protocol."""
    if not isinstance(found, wanted):
        name = getattr(config.document, kind).name
        package = config.registry.entries(kind)[name].plugin.package
        raise UserError(
            f"{kind} {name!r} of package {package}: its `{method}` returned a "
            f"{type(found).__name__}, not {wanted.__name__}",
            where=str(config.file),
            remedy=f"report it to the authors of {package}, or use another {kind}",
        )


def for_engine(config: Config, estimator: Estimator, *, firmly: bool) -> Estimator:
    """The estimator for the configured engine, where it asks for one.

    Raises `UserError` where it is told otherwise of it, if `firmly`.
    """
    from shuntserve_core.interfaces.estimator import EngineAware

    if not isinstance(estimator, EngineAware):
        return estimator
    try:
        return estimator.for_engine(engine_facts(config), firmly=firmly)
    except UserError as error:
        where = f"{config.file}: {error.where}"
        raise UserError(error.message, where=where, remedy=error.remedy) from error


def refuse_contradiction(config: Config) -> None:
    """Raise `UserError` where the estimator is told of another engine than what would run."""
    estimator = plugin_from(config, "estimator", config.document.estimator)
    for_engine(config, estimator, firmly=True)


def door_of(file: Path, registry: Registry) -> FrontDoor:
    """The front door of a configuration, of which nothing else is looked at: a machine that loads
    an endpoint need not have the model.  Raises `UserError`."""
    data = read_toml(file).get("frontdoor", {})
    options = dict(data) if isinstance(data, Mapping) else {}
    name = str(options.pop("name", FrontDoorTable().name))
    mistakes = Mistakes(str(file))
    cls = registry.get("frontdoor", name, where=f"{file}: frontdoor.name")
    door = structure_options(cls, options, registry, mistakes, key="frontdoor", base=file.parent)
    mistakes.raise_if_any()
    assert door is not None
    return door


def problem_from(config: Config, estimator: str | None = None, **changes: Any) -> Problem:
    """What the optimizer is asked; `changes` replace fields of the `Problem`."""
    from shuntserve_core.interfaces.optimizer import Problem

    search = config.document.optimizer
    problem = Problem(
        cluster=config.cluster,
        objective=config.objective,
        estimator=estimator_from(config, estimator),
        estimator_name=estimator or config.document.estimator.name,
        whole_instances=search.whole_instances,
        time_limit=search.time_limit,
        seed=search.seed,
    )
    return evolve(problem, **changes)


@overload
def plugin_from(
    config: Config, kind: Literal["estimator"], table: Any, name: str | None = None
) -> Estimator: ...
@overload
def plugin_from(
    config: Config, kind: Literal["optimizer"], table: Any, name: str | None = None
) -> Optimizer: ...
@overload
def plugin_from(
    config: Config, kind: Literal["balancer"], table: Any, name: str | None = None
) -> Balancer: ...
@overload
def plugin_from(
    config: Config, kind: Literal["spot-source"], table: Any, name: str | None = None
) -> SpotSource: ...
@overload
def plugin_from(
    config: Config, kind: Literal["engine"], table: Any, name: str | None = None
) -> Engine: ...
@overload
def plugin_from(
    config: Config, kind: Literal["frontdoor"], table: Any, name: str | None = None
) -> FrontDoor: ...
@overload
def plugin_from(
    config: Config, kind: Literal["launcher"], table: Any, name: str | None = None
) -> Launcher: ...
@overload
def plugin_from(config: Config, kind: str, table: Any, name: str | None = None) -> object: ...
def plugin_from(config: Config, kind: str, table: Any, name: str | None = None) -> object:
    """The plugin that a table with `name` and `options` asks for, or another by name, which then
    has its default options."""
    options = table.options if name in (None, table.name) else {}
    mistakes = Mistakes(str(config.file))
    cls = config.registry.get(kind, name or table.name)
    base = config.file.parent
    plugin = structure_options(cls, options, config.registry, mistakes, key=kind, base=base)
    mistakes.raise_if_any()
    return plugin
