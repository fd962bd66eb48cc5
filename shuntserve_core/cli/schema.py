"""`shuntserve schema`: the JSON schema of the configuration, for editors."""

from __future__ import annotations

import click

from shuntserve_core.cli.common import print_json, registry_of
from shuntserve_core.cli.output import reserve_stdout


@click.command()
@click.pass_context
def schema(ctx: click.Context) -> None:
    """Print the JSON schema of the configuration, with the options of installed plugins."""
    from shuntserve_core.config.schema import document_schema

    reserve_stdout(ctx)
    print_json(document_schema(registry_of(ctx)))
