"""A file system that is really full: nodes end, nothing is left behind, and it is said why."""

from __future__ import annotations

import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from shuntserve_core.cli import cli
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.launcher import NodeSpec
from shuntserve_core.runtime.cluster import RunningCluster
from shuntserve_core.runtime.serve import only_one
from shuntserve_plugins.launchers.local import LocalLauncher
from tests.core.weights.models import write_llama

KIB = 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """One of 256 KiB; mounting one is root's privilege."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        done = False
    if not done:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Write until nothing, or only so many bytes, can be written any more."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4 * KIB)
        except OSError:
            pass
        file.truncate(file.tell() - leave)
    return ballast


def agents_below(place: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "shuntserve_core.node" in words and any(str(place) in word for word in words):
            found.append(process.pid)
    return found


async def test_a_node_ends_on_a_full_disk_and_comes_back_when_there_is_room(disk: Path) -> None:
    launcher = LocalLauncher()
    await launcher.open(disk)
    node = NodeSpec("a#0", "a", 1)
    try:
        await launcher.launch(node)
        assert len(agents_below(disk)) == 1
        ballast = fill(disk)
        await launcher.terminate("a#0")
        assert agents_below(disk) == []
        fill(disk)
        with pytest.raises(UserError, match=r"no space left on device; free some space there"):
            await launcher.launch(node)
        assert agents_below(disk) == []
        ballast.unlink()
        await launcher.launch(node)
        assert len(agents_below(disk)) == 1
    finally:
        await launcher.terminate("a#0")


async def test_an_agent_that_cannot_be_remembered_is_not_left_behind(disk: Path) -> None:
    """There is room for its name and its secret, and not for its address."""
    launcher = LocalLauncher()
    await launcher.open(disk)
    fill(disk, leave=2 * 4 * KIB)
    with pytest.raises(UserError, match=r"cannot write: no space left on device; free some space"):
        await launcher.launch(NodeSpec("a#0", "a", 1))
    assert agents_below(disk) == []
    assert await launcher.adopt() == []


def test_a_push_to_a_full_disk_goes_on_when_there_is_room(disk: Path, tmp_path: Path) -> None:
    source, store = write_llama(tmp_path / "tiny"), disk / "store"
    store.mkdir()
    push = ["weights", "push", str(source), str(store), "--name", "local/tiny"]
    ballast = fill(disk, leave=60 * KIB)
    refused = CliRunner().invoke(cli, push)
    assert isinstance(refused.exception, UserError), refused
    text = str(refused.exception)
    assert text.startswith(f"{store}: raw/local/tiny/"), text
    assert "No space left on device; free some space and push again: what was stored is" in text
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    assert CliRunner().invoke(cli, push).exit_code == 0
    assert CliRunner().invoke(cli, ["weights", "verify", "local/tiny", str(store)]).exit_code == 0


def test_a_disk_that_is_mounted_read_only(disk: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (disk / "store").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    remedy = "it is mounted read-only: choose another place"
    with pytest.raises(UserError, match=rf"read-only file system; {remedy}"), only_one(disk / "s"):
        pass
    source = write_llama(tmp_path / "tiny")
    for command, said in (
        (["plan", str(config), "--out", str(disk / "out")], f"--out: cannot write {disk}/out: "),
        (
            ["weights", "push", str(source), str(disk / "store")],
            "Read-only file system; it is moun",
        ),
        (["weights", "quickstart", str(disk / "q"), str(disk / "s")], "STORE: cannot write"),
    ):
        done = CliRunner().invoke(cli, command)
        assert isinstance(done.exception, UserError), done
        assert said in str(done.exception)
        assert done.exception.remedy


def write_config(folder: Path) -> Path:
    config = folder / "sound.toml"
    config.write_text(
        '[model]\nname = "Qwen/Qwen3-32B"\n[workload]\ninput_tokens = 763\noutput_tokens = 232\n'
        '[[cluster]]\ninstance = "g6e.xlarge"\ncount = 4\n[optimizer]\nname = "beam-search"\n'
    )
    return config


def test_results_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    fill(disk)
    config = write_config(tmp_path)
    for command in (["plan", str(config)], ["simulate", str(config), "--rate", "1"]):
        done = CliRunner().invoke(cli, [*command, "--out", str(disk / "out")])
        assert isinstance(done.exception, UserError), done
        assert str(done.exception).startswith(f"--out: cannot write {disk}/out: no space left")
        assert not (disk / "out").is_file(), "half a result is none"


async def test_what_is_waited_for_names_what_became_of_the_node() -> None:
    cluster = RunningCluster.__new__(RunningCluster)
    cluster.nodes, cluster.runs, cluster.history = {}, {}, deque()
    assert cluster.waits_for == "waiting for the next try"
    cluster.history += [
        {"what": "pipeline failed", "pipeline": "p2", "reason": "loses a#0\n    Traceback"},
        {"what": "node did not come back", "node": "a#0", "reason": "no space left; free some"},
        {"what": "node joined", "node": "b#0"},
    ]
    assert cluster.waits_for == (
        "waiting for the next try; last failure: p2: loses a#0; a#0: no space left; free some"
    )
    cluster.history.append({"what": "could not be done", "reason": "too many open files"})
    assert cluster.waits_for.endswith("p2: loses a#0; too many open files")
