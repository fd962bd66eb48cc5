"""`shuntserve serve`: run a cluster."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

from shuntserve_core.cli.common import config_argument, config_of

if TYPE_CHECKING:
    from shuntserve_core.config import Config
    from shuntserve_core.runtime.serve import Report


@click.command()
@config_argument
@click.option("-v", "--verbose", is_flag=True, help="Log every change of state.")
@click.pass_context
def serve(ctx: click.Context, config_file: str, verbose: bool) -> None:
    """Serve the model of CONFIG, a TOML file, until interrupted.

    The first SIGTERM or SIGINT finishes the requests under way, the second ends at once.
    """
    import asyncio
    import contextlib

    from shuntserve_core.runtime.serve import run_in_loop
    from shuntserve_core.runtime.serve import serve as run

    config = config_of(ctx, config_file)
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    click.echo("shuntserve: starting nodes, stores and engines...", err=True)
    with contextlib.suppress(asyncio.CancelledError):
        screen = _Screen(config)
        run_in_loop(run(config, screen.ready, screen.changed))


class _Screen:
    """What is said of the cluster: `Serving` only while a pipeline serves."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._url = ""
        self._served = False

    def ready(self, report: Report) -> None:
        """It has come up."""
        self._url = report.url
        _show(self._config, report)
        self.changed(report.waits_for)

    def changed(self, waits_for: str) -> None:
        """No pipeline serves any more, or one does (again)."""
        if waits_for:
            click.echo(f"\nNot serving: {waits_for}.  Requests wait.", err=True)
        elif self._served:
            click.echo(f"Serving again at {self._url}", err=True)
        else:
            self._served = True
            _show_how_to_ask(self._config, self._url)


def _show(config: Config, report: Report) -> None:
    from shuntserve_core.cli.render import show_placement

    if report.placement is not None:
        show_placement(report.placement, config)
        if report.spares:
            click.echo(f"\nSpare: {', '.join(report.spares)}")
    else:
        click.echo("Went on with the engines that were running.")
    click.echo("\nOpen surfaces")
    for line in report.security:
        click.echo(f"  {line}")


def _show_how_to_ask(config: Config, url: str) -> None:
    name = config.document.serve.model_name or config.model.name
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    click.echo(f"\nServing {name} at {url}.  Try:\n")
    click.echo(f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")
