"""`shuntserve ticket`: let machines of one type join a cluster."""

from __future__ import annotations

import re
import time
from pathlib import Path

import click

from shuntserve_core.cli.common import config_argument, config_of, write_text
from shuntserve_core.errors import UserError, did_you_mean

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command()
@config_argument
@click.argument("instance", metavar="TYPE")
@click.option(
    "--uses",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="How many machines may come with it.",
)
@click.option(
    "--valid",
    default="1h",
    show_default=True,
    metavar="TIME",
    help="For how long: seconds, or a number with s, m, h or d.",
)
@click.option("--out", metavar="FILE", help="Write it there, readable by you alone.")
@click.pass_context
def ticket(
    ctx: click.Context, config_file: str, instance: str, uses: int, valid: str, out: str | None
) -> None:
    """Make a ticket with which machines of TYPE may join the cluster of CONFIG.

    A machine shows it once, to `shuntserve node join`, and gets a certificate. Whoever has the
    ticket may join until it has expired or is used up, so treat it as a password.
    """
    from shuntserve_core.config.build import plugin_from
    from shuntserve_core.interfaces.launcher import TicketLauncher
    from shuntserve_core.runtime.places import state_dir_of

    config = config_of(ctx, config_file)
    launcher = plugin_from(config, "launcher", config.document.launcher)
    if not isinstance(launcher, TicketLauncher):
        name = config.document.launcher.name
        raise UserError(
            f"the launcher {name!r} takes no tickets",
            where=f"{config.file}: launcher.name",
            remedy='set it to "join"',
        )
    if instance not in config.cluster.counts:
        remedy = did_you_mean(instance, config.cluster.counts)
        raise UserError(f"{instance!r} is not in the cluster", where="TYPE", remedy=remedy)
    made = launcher.make_ticket(state_dir_of(config), instance, seconds_of(valid), uses)
    if out is None:
        click.echo(made.text(), nl=False)
        return
    write_text(out, "")
    made.write(Path(out))
    until = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(made.expires))
    many = "one machine" if uses == 1 else f"{uses} machines"
    click.echo(f"{out}: for {many} of {instance}, until {until}")


def seconds_of(text: str) -> float:
    """A time such as `90`, `15m` or `2d`.  Raises `UserError`."""
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if not found or not int(found[1]):
        raise UserError(f"{text!r} is no time", where="--valid", remedy="write 90, 15m, 2h or 30d")
    return float(found[1]) * _UNITS[found[2] or "s"]
