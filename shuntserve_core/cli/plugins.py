"""`shuntserve plugins`: what is installed, from which package, and what failed to load."""

from __future__ import annotations

from typing import Any

import click

from shuntserve_core.cli.common import json_option, print_json, registry_of
from shuntserve_core.hookspecs import Provider
from shuntserve_core.registry import DISABLE_VARIABLE, KINDS, Registry


@click.command()
@json_option
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """Show every plugin: kind, name, package, version, hooks, and what failed and why."""
    registry = registry_of(ctx)
    provided = entry_rows(registry)
    installed = plugin_rows(registry)
    if as_json:
        print_json({"plugins": installed, "provides": provided})
        return
    for row in installed:
        _show_plugin(row, [entry for entry in provided if _is_from(entry, row)])
    click.echo(f"Leave one out with --disable-plugin NAME or {DISABLE_VARIABLE}=NAME.")


def plugin_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row for each entry point, usable or not."""
    failures = registry.failures
    return [
        {
            "name": info.name,
            "package": info.package,
            "version": info.version,
            "module": info.module,
            "hooks": list(info.hooks),
            "disabled": info.disabled,
            "error": failures.get(info.key, ""),
        }
        for info in registry.plugins
    ]


def entry_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row for each thing that has a name, by kind."""
    return [
        {
            "kind": kind,
            "name": entry.name,
            "package": entry.plugin.package,
            "version": entry.plugin.version,
            "plugin": entry.plugin.name,
            "target": entry.value.target if isinstance(entry.value, Provider) else "",
            "summary": entry.summary,
        }
        for kind in KINDS
        for entry in registry.entries(kind).values()
    ]


def _is_from(entry: dict[str, Any], plugin: dict[str, Any]) -> bool:
    return (entry["plugin"], entry["package"]) == (plugin["name"], plugin["package"])


def _show_plugin(row: dict[str, Any], provided: list[dict[str, Any]]) -> None:
    package = f"{row['package']} {row['version']}".strip()
    state = click.style(" (disabled)", fg="yellow") if row["disabled"] else ""
    click.echo(f"{click.style(row['name'], bold=True)}  {package}{state}")
    if row["error"]:
        click.echo(click.style(f"  failed: {row['error']}", fg="red"))
    for kind in KINDS:
        entries = [entry for entry in provided if entry["kind"] == kind]
        if kind in ("gpu", "instance-type") and entries:
            _show_names(kind, [entry["name"] for entry in entries])
        else:
            for entry in entries:
                click.echo(f"  {kind:<14} {entry['name']:<18} {entry['summary']}".rstrip())
    click.echo()


def _show_names(kind: str, names: list[str]) -> None:
    """Hardware comes in dozens: names only."""
    text = click.wrap_text(", ".join(names), 96, f"  {kind:<14} ", " " * 17)
    click.echo(text)
