"""What a running cluster listens on and leaves on the disk, against what it says of itself."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import psutil

from shuntserve_plugins.launchers.local import LocalLauncher
from tests.core.runtime.test_cluster import cluster


def processes(state_dir: Path) -> list[psutil.Process]:
    """Every process of the cluster: the control plane, agents, and what those have started."""
    roots = [json.loads((state_dir / "control.json").read_text())["pid"]]
    roots += [json.loads(file.read_text())["pid"] for file in state_dir.glob("nodes/*/agent.json")]
    found = {}
    for root in map(psutil.Process, roots):
        for process in (root, *root.children(recursive=True)):
            found[process.pid] = process
    return list(found.values())


async def test_a_cluster_listens_where_it_says_and_keeps_its_files_to_itself(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path) as served:
        await served.status()
        everyone = processes(tmp_path / "state")
        assert len(everyone) >= 7  # control plane, five agents, an engine at least
        doors, sockets = set(), set()
        for process in everyone:
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    doors.add(one.laddr.ip)
            for one in process.net_connections("unix"):
                if one.laddr:
                    sockets.add(Path(one.laddr))
        logs = [*(tmp_path / "state").rglob("*.log"), *(tmp_path / "state").rglob("agent.json")]
        run_dirs = {
            Path(words[words.index("--run-dir") + 1])
            for process in everyone
            if "--run-dir" in (words := process.cmdline())
        }
        private = [mode(path) for folder in run_dirs for path in (folder, folder.parent)]
        logs += [log for folder in run_dirs for log in folder.glob("*.log")]
        modes = {str(log): mode(log) for log in logs}
    said = "\n".join(LocalLauncher().security_posture())
    assert doors == {"127.0.0.1"}
    assert "node agents: 127.0.0.1" in said
    assert "engines: 127.0.0.1" in said
    assert "tensor stores: Unix sockets in a directory of this user alone" in said
    for path in sockets:
        assert path.parent in run_dirs, path
    assert len(run_dirs) == 5
    assert set(private) == {0o700}
    assert len(modes) >= 10
    assert set(modes.values()) == {0o600}, modes


def mode(path: Path) -> int:
    facts = path.lstat()
    assert facts.st_uid == os.geteuid()
    return stat.S_IMODE(facts.st_mode)
