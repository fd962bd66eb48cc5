"""What a running cluster listens on and leaves on the disk, against what it says of itself."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import psutil
import pytest
import torch

from shuntserve_core.surfaces import (
    AGENTS,
    CONTROL,
    ENGINES,
    FRONT_DOOR,
    RANKS,
    STORES,
    SURFACES,
    table,
)
from shuntserve_core.testing.chaos.client import ask
from shuntserve_core.testing.chaos.cluster import Served, serving
from shuntserve_core.testing.chaos.requests import Asked
from shuntserve_core.testing.listening import listening
from shuntserve_core.testing.models import write_tokenizer
from shuntserve_plugins.launchers.join import JoinLauncher
from shuntserve_plugins.launchers.local import LocalLauncher
from shuntserve_plugins.launchers.ray import RayLauncher
from tests.core.runtime.test_chaos import EMBEDDED
from tests.core.runtime.test_cluster import cluster
from tests.plugins.engines.embedded.models import build

ROOT = Path(__file__).parents[3]


def processes(state_dir: Path) -> list[psutil.Process]:
    """Every process of the cluster: the control plane, agents, and what those have started."""
    roots = [json.loads((state_dir / "control.json").read_text())["pid"]]
    roots += [json.loads(file.read_text())["pid"] for file in state_dir.glob("nodes/*/agent.json")]
    found = {}
    for root in map(psutil.Process, roots):
        for process in (root, *root.children(recursive=True)):
            found[process.pid] = process
    return list(found.values())


async def check(served: Served, state_dir: Path, least: int) -> None:
    """Nothing listens but what the launcher says, and files are for their user alone."""
    await served.status()
    everyone = processes(state_dir)
    assert len(everyone) >= least
    doors, sockets = listening(everyone)
    run_dirs = {
        Path(words[words.index("--run-dir") + 1])
        for process in everyone
        if "--run-dir" in (words := process.cmdline())
    }
    private = [mode(path) for folder in run_dirs for path in (folder, folder.parent)]
    logs = [*state_dir.rglob("*.log"), *state_dir.rglob("agent.json")]
    logs += [log for folder in run_dirs for log in folder.glob("*.log")]
    modes = {str(log): mode(log) for log in logs}
    said = LocalLauncher().security_posture()
    assert [line.partition(":")[0] for line in said] == [
        one.name for one in (AGENTS, STORES, ENGINES, RANKS)
    ]
    for one in (AGENTS, ENGINES, RANKS, CONTROL, FRONT_DOOR):
        assert doors == {one.where}
    for path in sockets:
        assert path.parent in run_dirs, path
    assert len(run_dirs) == len(list(state_dir.glob("nodes/*/agent.json")))
    assert set(private) == {0o700}
    assert len(modes) >= 2 * len(run_dirs)
    assert set(modes.values()) == {0o600}, modes


async def test_simulated_engines_listen_where_the_cluster_says(tmp_path: Path) -> None:
    async with cluster(tmp_path) as served:
        await check(served, tmp_path / "state", 7)  # control plane, five agents, an engine


@pytest.mark.timeout(240)
async def test_embedded_engines_and_stores_listen_where_the_cluster_says(tmp_path: Path) -> None:
    model = build("llama", tmp_path, torch.float16)
    write_tokenizer(model.directory, vocab_size=1100)
    config = tmp_path / "cluster.toml"
    config.write_text(EMBEDDED.format(name=model.name))
    async with serving(config, tmp_path / "state", tmp_path / "serve.log") as served:
        answer = await ask(served.session, served.url, asked("llama"))
        assert answer.done, answer.error
        await check(served, tmp_path / "state", 9)  # stores beside agents, and two ranks


def asked(model: str) -> Asked:
    body = {"model": model, "prompt": [5, 6, 7], "max_tokens": 4, "stream": True}
    return Asked("few", "/v1/completions", body)


def test_the_manual_has_the_table_that_serve_prints_from() -> None:
    page = (ROOT / "docs/how-to/secure.md").read_text()
    assert table() in page
    launchers = (LocalLauncher(), RayLauncher(), JoinLauncher())
    said = [CONTROL.line(), *(line for one in launchers for line in one.security_posture())]
    said_of = {line.partition(":")[0] for line in said} | {FRONT_DOOR.name}
    assert said_of == {one.name for one in SURFACES}
    for one in SURFACES:
        assert one is FRONT_DOOR or any(line.endswith(one.leaves) for line in said), one


def test_there_is_a_way_to_report_holes() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    for heading in ("Supported versions", "How to report a hole", "What is not protected"):
        assert f"## {heading}" in text
    assert "docs/how-to/secure.md" in text


def mode(path: Path) -> int:
    facts = path.lstat()
    assert facts.st_uid == os.geteuid()
    return stat.S_IMODE(facts.st_mode)
