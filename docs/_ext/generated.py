"""Writes the reference from the code before each build, so that it cannot fall behind.

Commands come from click, tables and keys of the configuration from their classes, hooks from the
hook specs, options of plugins from what is installed, parameters of requests from the front door's
table, and what engines do of them from what they declare.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import attrs
import click

from shuntserve_core import hookspecs, public
from shuntserve_core.cli import COMMANDS, cli
from shuntserve_core.config.docstrings import field_docs
from shuntserve_core.config.document import Document
from shuntserve_core.config.fields import choices_of, field_words, item_of, without_none
from shuntserve_core.config.schema import plugin_options, plugin_tables
from shuntserve_core.config.structure import OPTIONS_FIELD
from shuntserve_core.registry import HOOKS, KINDS, Registry
from shuntserve_core.types.features import NEEDS, Feature
from shuntserve_plugins.frontdoors.openai.parameters import PATHS, RULE, TABLES, Ruling

ENGINES = ("vllm", "embedded", "simulated")
GENERATED = Path(__file__).parents[1] / "reference" / "generated"


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda _: write_all())
    return {"parallel_read_safe": True}


def write_all() -> None:
    """Write every generated page; the pages of the reference include them."""
    GENERATED.mkdir(exist_ok=True)
    pages = {
        "commands.md": commands(),
        "configuration.md": configuration(),
        "hooks.md": hooks(),
        "parameters.md": parameters(),
        "features.md": features(),
        "library.md": functions(),
    }
    for name, text in pages.items():
        (GENERATED / name).write_text(text, encoding="utf-8")


def functions() -> str:
    """Every name of the library with its signature and docstring."""
    parts = []
    for name in public.__all__:
        value = getattr(public, name)
        signature = str(inspect.signature(value)).replace("'", "")
        parts += [
            f"## {name}\n",
            f"```python\nss.{name}{signature}\n```\n",
            f"{inspect.getdoc(value)}\n",
        ]
    return "\n".join(parts)


def commands() -> str:
    """Every command with its help and options."""
    context = click.Context(cli, info_name="shuntserve")
    parts = ["## shuntserve\n", _parameters(cli, context)]
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        parts += _command(command, click.Context(command, info_name=name, parent=context), 2)
    return "\n".join(parts)


def _command(command: click.Command, context: click.Context, level: int) -> list[str]:
    parts = [
        f"{'#' * level} {context.command_path}\n",
        f"```text\n{command.get_usage(context)}\n```\n",
        inspect.cleandoc(command.help or "") + "\n",
        _parameters(command, context),
    ]
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            inside = click.Context(inner, info_name=name, parent=context)
            parts += _command(inner, inside, level + 1)
    return parts


def _parameters(command: click.Command, context: click.Context) -> str:
    rows = ["| option | what |", "| --- | --- |"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record:
            rows.append(f"| `{_cell(record[0])}` | {_cell(record[1])} |")
    return "\n".join(rows) + "\n"


def configuration() -> str:
    """Every table of the configuration, and the options of every plugin."""
    registry = Registry()
    docs = field_docs(Document)
    parts = []
    for attribute in attrs.fields(attrs.resolve_types(Document)):
        kind = without_none(attribute.type)
        item = item_of(kind)
        written = f"[[{attribute.name}]]" if item else f"[{attribute.name}]"
        parts.append(f"## `{written}`\n\n{docs[attribute.name]}\n")
        parts.append(_table(item or kind, attribute.name))
        if plugin := plugin_tables().get(attribute.name):
            for name, cls in plugin_options(plugin, registry):
                parts.append(f"### Options of {plugin.replace('-', ' ')} `{name}`\n")
                parts.append(_table(cls, attribute.name))
    return "\n".join(parts)


def _table(cls: type, path: str) -> str:
    """A table of keys, followed by those of the tables inside it."""
    docs = field_docs(cls)
    rows = ["| key | what | values | default |", "| --- | --- | --- | --- |"]
    inside = []
    for attribute in attrs.fields(attrs.resolve_types(cls)):
        if not attribute.init or attribute.name == OPTIONS_FIELD:
            continue
        kind = without_none(attribute.type)
        inner = item_of(kind) or kind
        if attrs.has(inner):
            inside.append(f"\n`{path}.{attribute.name}`:\n\n{_table(inner, attribute.name)}")
        what = docs.get(attribute.name, "")
        words = field_words(attribute) if not attrs.has(inner) else "a table, below"
        rows.append(
            f"| `{attribute.name}` | {_cell(what)} | {_cell(words)} | {_default(attribute)} |"
        )
    if len(rows) == 2:
        return "None.\n"
    return "\n".join([*rows, "", *inside])


def _default(attribute: attrs.Attribute[Any]) -> str:
    default = attribute.default
    if default is attrs.NOTHING:
        return "required"
    if default is None or default == "" or default == ():
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, str):
        return f'`"{default}"`'
    if isinstance(default, int | float):
        return f"`{default:g}`" if not choices_of(attribute) else f"`{default}`"
    return ""


def hooks() -> str:
    """Every hook with its signature and its page of documentation."""
    kinds = {hook: kind for kind, hook in KINDS.items()}
    parts = []
    for name in HOOKS:
        function = getattr(hookspecs, name)
        signature = str(inspect.signature(function)).replace("'", "")
        parts.append(f"## `{name}`\n")
        parts.append(f"Kind `{kinds[name]}`: {inspect.cleandoc(function.__doc__ or '')}\n")
        parts.append(f"```python\ndef {name}{signature}\n```\n")
    return "\n".join(parts)


def parameters() -> str:
    """The rule for parameters of requests, and what becomes of each."""
    parts = [f"{RULE}\n"]
    for kind, path in PATHS.items():
        parts.append(f"## `POST {path}`\n")
        rows = ["| parameter | | why |", "| --- | --- | --- |"]
        for row in sorted(TABLES[kind].values(), key=lambda one: (one.ruling, one.name)):
            because = row.because
            if row.ruling in (Ruling.IN_PART, Ruling.REFUSED):
                because += f"; {row.instead or 'leave it out'}"
            rows.append(f"| `{row.name}` | {row.ruling} | {_cell(because)} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def features() -> str:
    """What requests can ask of engines, and which bundled engine does it."""
    registry = Registry()
    engines = {name: registry.get("engine", name)().features for name in ENGINES}
    fields: dict[str, list[str]] = {}
    for field, feature in NEEDS.items():
        fields.setdefault(feature or "", []).append(f"`{field}`")
    head = ["feature", "needed for", *(f"`{name}`" for name in engines)]
    rows = [head, ["---"] * len(head)]
    rows.append(["every engine", ", ".join(fields.pop("")), *["yes"] * len(engines)])
    for feature in Feature:
        used = ", ".join(fields.get(feature, ["output that another engine has generated"]))
        does = ["yes" if feature in of else "refuses" for of in engines.values()]
        rows.append([f"`{feature}`", used, *does])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
