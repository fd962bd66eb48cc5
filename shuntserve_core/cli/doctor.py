"""`shuntserve doctor`: whether this machine has what it needs, and what to do where it has not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import click

from shuntserve_core.cli.common import config_of, json_option, print_json, registry_of

if TYPE_CHECKING:
    from shuntserve_core.doctor import Examination

_SIGNS = {"ok": "ok", "absent": "-", "warning": "!", "problem": "PROBLEM"}


@click.command()
@click.argument("config_file", metavar="[CONFIG]", type=click.Path(), required=False)
@json_option
@click.pass_context
def doctor(ctx: click.Context, config_file: str | None, as_json: bool) -> None:
    """Check this machine: memory, disk, ports, clock, GPUs, engine, weights, cloud.

    With CONFIG also what that cluster needs of it.  Exits with 1 if something stands in the way.
    """
    from shuntserve_core.doctor import examine

    config = config_of(ctx, config_file) if config_file else None
    examinations = examine(registry_of(ctx), config)
    sound = all(examination.sound for examination in examinations)
    if as_json:
        print_json({"ok": sound, "checks": [attrs.asdict(one) for one in examinations]})
    else:
        _show(examinations)
    if not sound:
        sys.exit(1)


def _show(examinations: Sequence[Examination]) -> None:
    for examination in examinations:
        click.echo(examination.check)
        for finding in examination.findings:
            click.echo(f"  {_SIGNS[finding.state]:7}  {finding.what}: {finding.detail}")
            if finding.remedy:
                click.echo(f"           -> {finding.remedy}")
