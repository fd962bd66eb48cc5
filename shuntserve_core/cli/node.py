"""`shuntserve node join`: make this machine a part of a cluster."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from shuntserve_core.errors import UserError


@click.group()
def node() -> None:
    """Run on a machine that a cluster is to use."""


@node.command()
@click.argument("urls", nargs=-1, metavar="[https://HOST:PORT]...")
@click.option(
    "--ticket",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="From `shuntserve ticket`; needed the first time.",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the certificate and logs are kept.  [default: in ~/.local/state/shuntserve]",
)
@click.option("--address", default="", help="By which other machines reach this one.")
@click.option("--instance-id", default="", help="The cloud's name for this machine.")
@click.option("--zone", default="", help="The zone that it is in.")
def join(
    urls: tuple[str, ...],
    ticket: Path | None,
    state_dir: Path | None,
    address: str,
    instance_id: str,
    zone: str,
) -> None:
    """Join the cluster whose control plane is at one of the addresses, and stay.

    Without an address, those in the ticket are tried. The control plane may go and come: this
    dials again, and what runs here goes on meanwhile. SIGTERM ends this process and not the agent,
    which ends when the control plane says so, or when it has heard nothing for long.
    """
    import asyncio

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    for url in urls:
        if not url.startswith("https://"):
            raise UserError(f"{url!r} is no address", where="URL", remedy="write https://HOST:PORT")
    asyncio.run(_join(state_dir or _default_directory(), urls, ticket, address, instance_id, zone))


async def _join(
    directory: Path,
    urls: tuple[str, ...],
    file: Path | None,
    address: str,
    instance_id: str,
    zone: str,
) -> None:
    import asyncio
    import signal

    from shuntserve_core.joining.machine import Facts, JoiningMachine
    from shuntserve_core.trust.tickets import Ticket

    shown = Ticket.read(file) if file is not None and file.exists() else None
    facts = Facts(address, instance_id, zone)
    machine = JoiningMachine(directory, urls or (shown.urls if shown else ()), facts)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await machine.run(stop, shown)


def _default_directory() -> Path:
    from shuntserve_core.runtime.places import default_state_root

    return default_state_root() / "machine"
