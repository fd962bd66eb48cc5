"""Nothing that a user or a plugin author meets is undocumented."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import attrs
import click
import pytest

from shuntserve_core import hookspecs
from shuntserve_core.cli import COMMANDS, cli
from shuntserve_core.config.docstrings import field_docs
from shuntserve_core.config.document import Document
from shuntserve_core.config.fields import item_of, without_none
from shuntserve_core.config.schema import plugin_kinds, plugin_options
from shuntserve_core.config.structure import OPTIONS_FIELD
from shuntserve_core.registry import HOOKS, Registry


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
    seen = 0
    for kind in plugin_kinds():
        for name, cls in plugin_options(kind, registry):
            assert undocumented(cls) == [], f"{kind} {name}"
            seen += 1
    assert seen >= 5


def test_hooks() -> None:
    for name in HOOKS:
        assert inspect.getdoc(getattr(hookspecs, name)), name
