"""Readers that leave, Ctrl-C, and limits of the process: no command ends in a traceback."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.cli.test_broken_inputs import SOUND
from tests.core.simulator.configs import write

SHUNTSERVE = (sys.executable, "-m", "shuntserve_core.cli")
PATIENCE = 60
STUDY = """
[study]
title = "long"
about = "One."
[[placement]]
config = "toy.toml"
optimizers = ["exact"]
[[workload]]
name = "steady"
rate = 20
requests = 2000000
[[experiment]]
name = "one"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "sound.toml"
    file.write_text(SOUND)
    return file


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SHUNTSERVE, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )


@pytest.mark.parametrize("command", [("plan", "CONFIG"), ("plan", "CONFIG", "--json"), ("schema",)])
def test_a_reader_that_leaves(config: Path, command: tuple[str, ...]) -> None:
    words = [str(config) if word == "CONFIG" else word for word in command]
    read, write = os.pipe()
    os.close(read)
    try:
        done = run(*words, stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_standard_output_that_is_closed_or_full(config: Path, flags: tuple[str, ...]) -> None:
    words = " ".join([*SHUNTSERVE, "plan", str(config), *flags])
    closed = subprocess.run(
        ["sh", "-c", f"{words} >&-"], stderr=subprocess.PIPE, text=True, check=False
    )
    assert (closed.returncode, closed.stderr) == (0, "")
    with open("/dev/full", "w") as full:  # noqa: PTH123 - not a file
        done = run("plan", config, *flags, stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("shuntserve: cannot write: no space left on device; free some")
    assert len(done.stderr.splitlines()) == 1


def limited(what: int, limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(what, (limit, limit))


def test_files_that_may_not_be_so_large(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    fsize = limited(resource.RLIMIT_FSIZE, 100)
    done = run("plan", config, "--out", out, preexec_fn=fsize, stdout=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stderr == (
        f"--out: cannot write {out}: file too large; name a file in a folder that is\n"
    )
    assert not out.exists()


def test_too_many_open_files(tmp_path: Path) -> None:
    """The command has the files that it needs to begin, and none for its work."""
    code = (
        "import resource, sys\n"
        "from shuntserve_core.cli import main\n"
        "import shuntserve_core.cli.weights, shuntserve_core.weights.sources.safetensors\n"
        "import shuntserve_core.weights.planning, shuntserve_core.weights.pushing\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        f"sys.argv = ['shuntserve', 'weights', 'push', {str(tmp_path)!r}, 'store']\n"
        "main()\n"
    )
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.endswith("too many open files; raise the limit: ulimit -n 65536\n")
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        yield server


def interrupted(
    command: tuple[object, ...], begun: Callable[[subprocess.Popen[str]], object], **options: Any
) -> tuple[int, str]:
    """Press Ctrl-C once a command is at work: exit status and standard error."""
    with subprocess.Popen(
        [*SHUNTSERVE, *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # its children hear the signal too, as on a terminal
        **options,
    ) as process:
        try:
            begun(process)
            os.killpg(process.pid, signal.SIGINT)
            said = process.communicate(timeout=PATIENCE)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


@pytest.mark.parametrize("kind", ["bench", "model of bench", "weights ls", "hub"])
def test_ctrl_c_while_a_server_is_silent(silent: socket.socket, tmp_path: Path, kind: str) -> None:
    url = f"http://127.0.0.1:{silent.getsockname()[1]}"
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    command = {
        "bench": ("bench", url, "--model", "m"),
        "model of bench": ("bench", url),
        "weights ls": ("weights", "ls", f"s3://b/p?endpoint={url}"),
        "hub": ("weights", "push", "org/name", tmp_path / "store"),
    }[kind]
    with contextlib.ExitStack() as accepted:
        code, said = interrupted(
            command, lambda _: accepted.enter_context(silent.accept()[0]), env=environment
        )
    assert (code, said.strip()) == (130, "")


def test_ctrl_c_while_it_computes(config: Path) -> None:
    command = ("simulate", config, "--rate", 100, "--requests", 3_000_000)
    code, said = interrupted(command, _uses_a_second)
    assert (code, said.strip()) == (130, "")


def _uses_a_second(process: subprocess.Popen[str]) -> None:
    """Until it has computed for so long; importing takes less than three seconds of it."""
    import psutil

    watched = psutil.Process(process.pid)
    deadline = time.monotonic() + PATIENCE
    while watched.cpu_times().user < 4 and time.monotonic() < deadline:
        time.sleep(0.05)


def test_ctrl_c_ends_a_study_and_its_processes(tmp_path: Path) -> None:
    import psutil

    write(tmp_path)
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    workers: list[psutil.Process] = []

    def begun(process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            workers[:] = psutil.Process(process.pid).children(recursive=True)
            if any(worker.cpu_times().user > 4 for worker in workers):
                return
            time.sleep(0.05)

    code, said = interrupted(("compare", study, "--workers", 1, "--out", tmp_path / "out"), begun)
    assert code == 130
    assert "Traceback" not in said
    assert workers
    assert psutil.wait_procs(workers, timeout=10)[1] == []
