"""`shuntserve check`: whether a configuration is sound, with every mistake in one go."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from shuntserve_core.cli.common import (
    config_argument,
    config_of,
    json_option,
    naming,
    print_json,
)
from shuntserve_core.errors import UserError, UserErrorGroup

if TYPE_CHECKING:
    from shuntserve_core.config import Config


@click.command()
@config_argument
@json_option
@click.pass_context
def check(ctx: click.Context, config_file: str, as_json: bool) -> None:
    """Check CONFIG: names, types, ranges, model facts and plugins; all mistakes at once."""
    from shuntserve_core.config import optimizer_from, problem_from
    from shuntserve_core.config.suited import refuse_or_note
    from shuntserve_core.doctor.machine import local_trouble

    try:
        config = config_of(ctx, config_file)
        with naming(config.file):
            problem_from(config)
            optimizer_from(config)
            unsuited = refuse_or_note(config)
            troubles = _unimported(config)
    except UserError as error:
        if not as_json:
            raise
        errors = error.errors if isinstance(error, UserErrorGroup) else (error,)
        rows = [{"where": e.where, "message": e.message, "remedy": e.remedy} for e in errors]
        print_json({"file": config_file, "ok": False, "errors": rows})
        sys.exit(error.exit_code)
    if not troubles and (trouble := local_trouble(config)):
        troubles = [f"launcher.device: {trouble}"]
    notes = [f"for planning only, it cannot be served: {unsuited}"] if unsuited else []
    notes += [f"it cannot be served from this machine: {trouble}" for trouble in troubles]
    if as_json:
        print_json({"file": config_file, "ok": True, "errors": [], "notes": notes})
        return
    instances = sum(config.cluster.counts.values())
    click.echo(
        f"{config_file}: ok: {config.model.name}, up to {instances} instances of "
        f"{len(config.cluster.offers)} types, optimizer {config.document.optimizer.name}, "
        f"estimator {config.document.estimator.name}"
    )
    for note in notes:
        click.echo(f"note: {note}")


def _unimported(config: Config) -> list[str]:
    """What `serve` would need and a bare installation lacks.  Raises `UserError` for what would be
    wrong on any machine."""
    from shuntserve_core.config.build import plugin_from

    document = config.document
    tables = [(kind, getattr(document, kind)) for kind in ("balancer", "frontdoor", "launcher")]
    troubles = []
    for kind, table in [*tables, *(("spot-source", table) for table in document.spot)]:
        try:
            plugin_from(config, kind, table)
        except UserError as error:
            if not isinstance(error.__cause__, ModuleNotFoundError):
                raise
            troubles.append(str(error))
    return troubles
