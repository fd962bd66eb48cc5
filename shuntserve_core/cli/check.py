"""`shuntserve check`: whether a configuration is sound, with every mistake in one go."""

from __future__ import annotations

import sys

import click

from shuntserve_core.cli.common import (
    config_argument,
    config_of,
    json_option,
    naming,
    print_json,
)
from shuntserve_core.errors import UserError, UserErrorGroup


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
    except UserError as error:
        if not as_json:
            raise
        errors = error.errors if isinstance(error, UserErrorGroup) else (error,)
        rows = [{"where": e.where, "message": e.message, "remedy": e.remedy} for e in errors]
        print_json({"file": config_file, "ok": False, "errors": rows})
        sys.exit(error.exit_code)
    instances = sum(config.cluster.counts.values())
    if as_json:
        print_json({"file": config_file, "ok": True, "errors": []})
        return
    click.echo(
        f"{config_file}: ok: {config.model.name}, up to {instances} instances of "
        f"{len(config.cluster.offers)} types, optimizer {config.document.optimizer.name}, "
        f"estimator {config.document.estimator.name}"
    )
    if unsuited:
        click.echo(f"note: for planning only, it cannot be served: {unsuited}")
    if trouble := local_trouble(config):
        click.echo(f"note: it cannot be served from this machine: launcher.device: {trouble}")
