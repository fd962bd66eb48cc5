"""`shuntserve interrupt` and `shuntserve restore`: rehearse what a cloud does to nodes."""

from __future__ import annotations

import click

from shuntserve_core.cli.common import FiniteRange
from shuntserve_core.cli.control import Control, cluster_option


@click.command()
@click.argument("node")
@click.option(
    "--notice",
    type=FiniteRange(0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between the notice and the end; 0 takes the node without notice.",
)
@click.option("--withdraw", is_flag=True, help="Take a notice back.")
@cluster_option
@click.pass_context
def interrupt(
    ctx: click.Context, node: str, notice: float, withdraw: bool, cluster: str | None
) -> None:
    """Take NODE away, as a cloud would: a notice, and at its deadline the end."""
    control = Control.find(ctx, cluster)
    if withdraw:
        control.call("POST", "/v1/events", {"node": node, "kind": "withdrawn"})
        click.echo(f"{node}: notice withdrawn")
    elif notice == 0:
        control.call("POST", "/v1/events", {"node": node, "kind": "lost"})
        click.echo(f"{node}: taken without notice")
    else:
        control.call("POST", "/v1/events", {"node": node, "kind": "notice", "notice": notice})
        click.echo(f"{node}: will be taken in {notice:g} s")


@click.command()
@click.argument("node")
@cluster_option
@click.pass_context
def restore(ctx: click.Context, node: str, cluster: str | None) -> None:
    """Give a NODE back that was taken."""
    Control.find(ctx, cluster).call("POST", "/v1/events", {"node": node, "kind": "restored"})
    click.echo(f"{node}: restored")
