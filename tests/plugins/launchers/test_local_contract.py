"""The bundled launcher of subprocesses passes the contract that plugin authors are given."""

from __future__ import annotations

from shuntserve_core.interfaces.launcher import Launcher
from shuntserve_core.testing.launchers import LauncherContract
from shuntserve_plugins.launchers.local import LocalLauncher


class TestLocal(LauncherContract):
    def make_launcher(self) -> Launcher:
        return LocalLauncher(orphan_seconds=60.0)
