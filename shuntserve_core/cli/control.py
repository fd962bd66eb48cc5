"""Finding a running control plane, and asking it."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import click

from shuntserve_core.errors import UserError

cluster_option = click.option(
    "--cluster",
    "cluster",
    metavar="CONFIG|DIR",
    help="The configuration or state directory of the cluster; needed if several run.",
)


class Control:
    """A running control plane."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token

    @classmethod
    def find(cls, ctx: click.Context, cluster: str | None) -> Control:
        """The one of that configuration or state directory, or the only one that runs."""
        from shuntserve_core.runtime.control import CONTROL_FILE

        directories = _directories(ctx, cluster)
        running = [d for d in directories if _alive(d / CONTROL_FILE)]
        if len(running) != 1:
            what = "no cluster is running" if not running else "several clusters are running"
            names = ", ".join(str(directory) for directory in running)
            remedy = (
                f"name one with --cluster: {names}" if running else "start one: shuntserve serve"
            )
            raise UserError(what, where=cluster or "", remedy=remedy)
        control = json.loads((running[0] / CONTROL_FILE).read_text())
        return cls(control["url"], control["token"])

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Ask it something.  Raises `UserError` with its reason, or that it does not answer."""
        request = urllib.request.Request(  # noqa: S310 - the URL is our own, on loopback
            self._url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise UserError(str(json.loads(error.read()).get("error", error))) from error
        except OSError as error:
            raise UserError(
                f"the control plane does not answer: {error}",
                remedy="see whether `shuntserve serve` still runs",
            ) from error


def _directories(ctx: click.Context, cluster: str | None) -> list[Path]:
    from shuntserve_core.runtime.places import announced, state_dir_of

    if cluster is None:
        return announced()
    path = Path(cluster)
    if path.is_dir():
        return [path]
    from shuntserve_core.cli.common import config_of

    return [state_dir_of(config_of(ctx, cluster))]


def _alive(file: Path) -> bool:
    try:
        os.kill(int(json.loads(file.read_text())["pid"]), 0)
    except (OSError, ValueError, KeyError):
        return False
    return True
