"""How node agents come to be, bundled."""

from __future__ import annotations

from collections.abc import Iterable

from shuntserve_core.hookspecs import Provider, hookimpl


@hookimpl
def shuntserve_register_launchers() -> Iterable[Provider]:
    """Subprocesses on this machine, machines that join, and those of a Ray cluster."""
    here = "shuntserve_plugins.launchers"
    yield Provider("local", f"{here}.local:LocalLauncher", "Subprocesses on this machine")
    yield Provider("join", f"{here}.join:JoinLauncher", "Machines that come by themselves")
    yield Provider("ray", f"{here}.ray:RayLauncher", "Machines that have joined a Ray cluster")
