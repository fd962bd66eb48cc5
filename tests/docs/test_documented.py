"""Nothing that a user or a plugin author meets is undocumented."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import click
import pytest

from shuntserve_core import hookspecs
from shuntserve_core.cli import COMMANDS, cli
from shuntserve_core.config.docstrings import field_docs
from shuntserve_core.config.document import Document
from shuntserve_core.config.fields import item_of, without_none
from shuntserve_core.config.schema import plugin_options, plugin_tables
from shuntserve_core.config.structure import OPTIONS_FIELD
from shuntserve_core.registry import HOOKS, Registry
from shuntserve_plugins.storage.s3 import S3Options


def reference() -> str:
    """The reference of the configuration, as the manual has it."""
    file = Path(__file__).parents[2] / "docs" / "_ext" / "generated.py"
    spec = importlib.util.spec_from_file_location("generated", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text: str = module.configuration()
    return text


def table_keys(name: str) -> set[str]:
    """Keys that a table of the configuration has itself, beside a plugin's options."""
    kind: Any = without_none(attrs.fields_dict(attrs.resolve_types(Document))[name].type)
    return set(attrs.fields_dict(item_of(kind) or kind))


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command and subcommand with its path."""
    context = click.Context(cli)
    pending = [("shuntserve", cli)] + [
        (f"shuntserve {name}", cli.get_command(context, name)) for name in COMMANDS
    ]
    while pending:
        path, command = pending.pop()
        assert command is not None, path
        yield path, command
        if isinstance(command, click.Group) and command is not cli:
            pending += [(f"{path} {name}", inner) for name, inner in command.commands.items()]


def tables(cls: type, path: str) -> Iterator[tuple[str, type]]:
    """Every class of the configuration with the path of its table."""
    yield path, cls
    for attribute in attrs.fields(attrs.resolve_types(cls)):
        if not attribute.init:
            continue
        kind: Any = without_none(attribute.type)
        inner = item_of(kind) or kind
        if isinstance(inner, type) and attrs.has(inner):
            yield from tables(inner, f"{path}.{attribute.name}".lstrip("."))


def undocumented(cls: type) -> list[str]:
    """Keys of a table that lack a docstring."""
    docs = field_docs(cls)
    names = [a.name for a in attrs.fields(cls) if a.init and a.name != OPTIONS_FIELD]
    return [name for name in names if not docs.get(name)]


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=lambda value: str(value)[:40])
def test_commands_and_flags(path: str, command: click.Command) -> None:
    assert command.help, path
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.opts}"


def test_commands_have_a_line_in_the_overview() -> None:
    assert all(command.summary.endswith(".") for command in COMMANDS.values())


@pytest.mark.parametrize(("path", "cls"), list(tables(Document, "")), ids=lambda value: str(value))
def test_keys(path: str, cls: type) -> None:
    assert undocumented(cls) == [], path


def test_plugin_options() -> None:
    registry = Registry()
    written = reference()
    for table, kind in plugin_tables().items():
        known = dict(plugin_options(kind, registry))
        classes = {name: registry.get(kind, name) for name in registry.entries(kind)}
        assert known.keys() == {name for name, cls in classes.items() if attrs.has(cls)}, kind
        for name, cls in known.items():
            for path, inner in tables(cls, name):
                assert undocumented(inner) == [], f"{kind} {path}"
            heading = f"### Options of {kind.replace('-', ' ')} `{name}`\n"
            assert heading in written
            section = written.partition(heading)[2].partition("\n#")[0]
            keys = {field.name for field in attrs.fields(cls) if field.init}
            assert all(f"| `{key}` |" in section for key in keys), f"{kind} {name}"
            assert not keys & table_keys(table), f"no user can set them: {kind} {name}"


def test_options_of_store_urls() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "weights.md").read_text()
    options = {a.name for a in attrs.fields(S3Options)} - {"bucket", "prefix"}
    assert len(options) >= 6
    assert all(f"| `{option}` |" in page for option in options)


def test_hooks() -> None:
    for name in HOOKS:
        assert inspect.getdoc(getattr(hookspecs, name)), name
