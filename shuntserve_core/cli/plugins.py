"""`shuntserve plugins`: what is installed, from which package, and what failed to load."""

from __future__ import annotations

from typing import Any

import click

from shuntserve_core.cli.common import print_json, registry_of
from shuntserve_core.hookspecs import Provider
from shuntserve_core.registry import KINDS, Registry


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def plugins(ctx: click.Context, as_json: bool) -> None:
    """Show every plugin: kind, name, package, version, hooks, and what failed and why."""
    registry = registry_of(ctx)
    report = {"plugins": _plugin_rows(registry), "provides": _entry_rows(registry)}
    if as_json:
        print_json(report)
        return
    for row in report["plugins"]:
        state = " (disabled)" if row["disabled"] else ""
        click.echo(f"{row['name']}  {row['package']} {row['version']}{state}")
        if row["error"]:
            click.echo(f"  failed: {row['error']}")
    for kind in KINDS:
        rows = [row for row in report["provides"] if row["kind"] == kind]
        if rows:
            click.echo(f"\n{kind}")
        for row in rows:
            click.echo(f"  {row['name']:<20} {row['package']:<22} {row['summary']}".rstrip())


def _plugin_rows(registry: Registry) -> list[dict[str, Any]]:
    failures = registry.failures
    return [
        {
            "name": info.name,
            "package": info.package,
            "version": info.version,
            "module": info.module,
            "hooks": list(info.hooks),
            "disabled": info.disabled,
            "error": info.error or failures.get(f"{info.package}:{info.name}", ""),
        }
        for info in registry.plugins
    ]


def _entry_rows(registry: Registry) -> list[dict[str, Any]]:
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
