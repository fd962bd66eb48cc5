"""Reading a configuration file into typed values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import tomli
from attrs import frozen

from shuntserve_core.config.document import Document
from shuntserve_core.config.hardware import Hardware, resolve_cluster, resolve_hardware
from shuntserve_core.config.mistakes import Mistakes
from shuntserve_core.config.model import resolve_model
from shuntserve_core.config.options import structure_options
from shuntserve_core.config.plugins import check_required
from shuntserve_core.config.serving import check_spares
from shuntserve_core.config.structure import NameLookup, make_converter
from shuntserve_core.config.workload import resolve_workload
from shuntserve_core.errors import UserError, did_you_mean
from shuntserve_core.foreign import read_any
from shuntserve_core.registry import Registry
from shuntserve_core.types import Cluster, GpuSpec, InstanceType, ModelSpec, Objective, Workload

MOST_BYTES = 16 << 20
"""Of a configuration; real ones have thousands."""


@frozen
class Config:
    """A configuration, checked: what it says (`document`), and what that amounts to."""

    file: Path
    document: Document
    """The tables as they were written, with defaults."""
    registry: Registry
    """The plugins, less those that the file disables."""
    model: ModelSpec
    workload: Workload
    cluster: Cluster
    objective: Objective
    gpus: Mapping[str, GpuSpec]
    """Every GPU that has a name, registered or in the file."""
    instance_types: Mapping[str, InstanceType]
    """Every instance type that has a name, registered or in the file."""
    engine_said: bool = True
    """Whether the file names an engine, and not only what is planned for one."""


def load_config(file: Path | str, registry: Registry | None = None) -> Config:
    """Read, check and resolve a TOML file.

    Raises `UserError` with every mistake of the file, one line each.
    """
    file = Path(file)
    return config_from_data(read_toml(file), file, registry or Registry())


def config_from_data(data: Mapping[str, Any], file: Path, registry: Registry) -> Config:
    """Check and resolve a parsed file; `file` is what paths in it are relative to."""
    registry = registry.without(_disabled(data))
    mistakes = Mistakes(str(file))
    tables = _structure(data, registry, mistakes)
    registered = Hardware(registry.gpus, registry.instance_types)
    hardware = resolve_hardware(
        registered, tables.get("gpu", ()), tables.get("instance_type", ()), mistakes
    )
    base = file.parent
    model = resolve_model(tables["model"], base, mistakes) if "model" in tables else None
    workload = (
        resolve_workload(tables["workload"], base, mistakes) if "workload" in tables else None
    )
    cluster = (
        resolve_cluster(tables["cluster"], hardware, mistakes) if "cluster" in tables else None
    )
    if "plugins" in tables:
        check_required(tables["plugins"], registry, mistakes)
    for kind in ("estimator", "optimizer", "engine", "frontdoor", "balancer", "launcher"):
        if kind in tables and tables[kind].options:
            _check_options(kind, tables[kind], registry, mistakes, base)
    for index, table in enumerate(tables.get("spot", ())):
        _check_options("spot-source", table, registry, mistakes, base, key=f"spot[{index}]")
    if cluster is not None and "serve" in tables:
        check_spares(tables["serve"], cluster, mistakes)
    _check_together(model, workload, tables.get("objective"), mistakes)
    mistakes.raise_if_any()
    assert model is not None
    assert workload is not None
    assert cluster is not None
    document = Document(**tables)
    return Config(
        file=file,
        document=document,
        registry=registry,
        model=model,
        workload=workload,
        cluster=cluster,
        objective=document.objective,
        gpus=hardware.gpus,
        instance_types=hardware.instance_types,
        engine_said="engine" in data,
    )


def read_toml(file: Path) -> dict[str, Any]:
    """The content of a TOML file.  Raises `UserError` for one that cannot be read."""
    where = str(file)
    try:
        return tomli.loads(read_any(file, MOST_BYTES).decode("utf-8"))
    except FileNotFoundError:
        near = [str(other) for other in file.parent.glob("*.toml")]
        raise UserError("no such file", where=where, remedy=did_you_mean(where, near)) from None
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise UserError(f"cannot read it: {reason}", where=where, remedy="give a file") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 at byte {error.start}", where=where, remedy="save it as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"not valid TOML: {reason}", where=where, remedy="correct that line"
        ) from error


def _structure(data: Mapping[str, Any], registry: Registry, mistakes: Mistakes) -> dict[str, Any]:
    """Each table by itself, so that a mistake in one hides none in another."""
    converter = make_converter(_name_lookup(data, registry))
    fields = attrs.fields_dict(attrs.resolve_types(Document))
    for key in data.keys() - fields.keys():
        mistakes.add(ascii(key)[1:-1] or '""', "unknown table", did_you_mean(key, fields))
    tables = {}
    for key, attribute in fields.items():
        if key in data:
            try:
                kind: Any = attribute.type
                tables[key] = converter.structure(data[key], kind)
            except Exception as error:  # cattrs' own groups, or what a hook of a field raised
                mistakes.add_structure_error(error, key)
        elif attribute.default is attrs.NOTHING:
            written = f"[[{key}]]" if key == "cluster" else f"[{key}]"
            mistakes.add(key, "is missing", f"add the table {written}")
    return tables


def _name_lookup(data: Mapping[str, Any], registry: Registry) -> NameLookup:
    own = {
        "gpu": _own_names(data.get("gpu")),
        "instance-type": _own_names(data.get("instance_type")),
    }

    def unknown(kind: str, name: str) -> str | None:
        if name in own.get(kind, ()) or name in registry.entries(kind):
            return None
        return registry.remedy(kind, name, also=own.get(kind, ()))

    return unknown


def _own_names(tables: object) -> list[str]:
    """Names that the file itself defines, as far as it is well-formed."""
    if not isinstance(tables, list):
        return []
    names = (table.get("name") for table in tables if isinstance(table, Mapping))
    return [name for name in names if isinstance(name, str)]


def _disabled(data: Mapping[str, Any]) -> list[str]:
    table = data.get("plugins")
    names = table.get("disable") if isinstance(table, Mapping) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _check_options(
    kind: str, table: Any, registry: Registry, mistakes: Mistakes, base: Path, *, key: str = ""
) -> None:
    key = key or kind
    try:
        cls = registry.get(kind, table.name)
        structure_options(cls, table.options, registry, mistakes, key=key, base=base)
    except UserError as error:
        mistakes.add(f"{key}.name", error.message, error.remedy)


def _check_together(
    model: ModelSpec | None,
    workload: Workload | None,
    objective: Objective | None,
    mistakes: Mistakes,
) -> None:
    if model and workload and workload.max_length > model.max_positions:
        mistakes.add(
            "workload.max_length",
            f"{workload.max_length} is more than the {model.max_positions} positions of the model",
            f"give at most {model.max_positions}",
        )
    if objective and objective.kind == "cost" and objective.rate is None:
        mistakes.add("objective.rate", "is missing", 'kind = "cost" needs the rate in requests/s')
