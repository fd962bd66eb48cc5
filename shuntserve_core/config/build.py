"""From a configuration to what its plugins make of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import evolve

from shuntserve_core.config.loader import Config
from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.config.options import structure_options

if TYPE_CHECKING:
    from shuntserve_core.interfaces.estimator import BoundEstimator
    from shuntserve_core.interfaces.optimizer import Optimizer, Problem
    from shuntserve_core.types import InstanceType


def optimizer_from(config: Config, name: str | None = None) -> Optimizer:
    """The configured optimizer, or another by name, which then has its default options."""
    optimizer: Optimizer = plugin_from(config, "optimizer", config.document.optimizer, name)
    return optimizer


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
    bound: BoundEstimator = estimator.bind(
        config.model, config.workload, config.cluster.catalog if catalog is None else catalog
    )
    return bound


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


def plugin_from(config: Config, kind: str, table: Any, name: str | None = None) -> Any:
    """The plugin that a table with `name` and `options` asks for, or another by name, which then
    has its default options."""
    options = table.options if name in (None, table.name) else {}
    mistakes = Mistakes(str(config.file))
    plugin = structure_options(kind, name or table.name, options, config.registry, mistakes)
    mistakes.raise_if_any()
    return plugin
