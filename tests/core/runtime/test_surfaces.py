"""What a running cluster listens on and leaves on the disk, against what it says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from attrs import frozen

from shuntserve_core.joining.machine import Facts, JoiningMachine
from shuntserve_core.surfaces import (
    AGENTS,
    CONTROL,
    ENGINES,
    FRONT_DOOR,
    JOINING,
    RANKS,
    RAY,
    STORES,
    SURFACES,
    Surface,
    table,
)
from shuntserve_core.testing.chaos.client import ask
from shuntserve_core.testing.chaos.cluster import Served, serving
from shuntserve_core.testing.chaos.requests import Asked
from shuntserve_core.testing.listening import UNIX, Listener, listeners
from shuntserve_core.testing.models import write_tokenizer
from shuntserve_core.trust.tickets import Ticket
from shuntserve_plugins.launchers.join import JoinLauncher
from shuntserve_plugins.launchers.local import LocalLauncher
from shuntserve_plugins.launchers.ray import RayLauncher
from tests.core.runtime.test_chaos import EMBEDDED
from tests.plugins.engines.embedded.models import build
from tests.plugins.engines.vllm import models

ROOT = Path(__file__).parents[3]
LOOPBACK = "127.0.0.1"
ENGINE_NAMES = ("simulated", "embedded", "vllm")
RAY_TOKEN = "a-token-for-tests-of-forty-characters-00"


@frozen
class Ray:
    """A cluster of Ray on this machine."""

    address: str
    host: str
    sessions: Path
    """Where its Unix sockets are."""
    process: psutil.Process
    """Whatever Ray starts is below it."""


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    """With a machine for each node."""
    pytest.importorskip("ray", reason="Ray has no build for this Python: its launcher is not tried")
    settings = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": RAY_TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in settings.items():
            patched.setenv(name, value)  # for `serve` as well
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.core.runtime.raylet", '{"duo": 1, "solo": 3}'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout
            facts = json.loads(process.stdout.readline())
            below = psutil.Process(process.pid)
            yield Ray(facts["address"], facts["host"], Path(facts["sessions"]), below)
            assert process.stdin
            process.stdin.close()
            process.wait(60)


OF_LAUNCHER = {"local": [], "ray": [RAY], "join": [JOINING]}
"""What listens with one beside what does with all."""


def whose(process: psutil.Process, launcher: str) -> list[Surface]:
    """What may listen in this process."""
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return []
    if "shuntserve_core.cli" in words:
        return [FRONT_DOOR, CONTROL, *OF_LAUNCHER[launcher]]  # it is Ray's driver, too
    if "shuntserve_core.node" in words:
        return [AGENTS]
    if any(".tensorstore" in word for word in words):
        return [STORES]
    if any("shuntserve_core.forking" in word for word in words):
        return []
    if any("worker" in word and "shuntserve_plugins" in word for word in words):
        return [ENGINES, RANKS]
    ours = any("shuntserve" in word for word in words)
    return [RAY] if launcher == "ray" and not ours else []


def everything(served: Served, ray: Ray | None) -> list[psutil.Process]:
    """Every process of the cluster: the control plane, agents, and what those have started.

    This one is the machines that join, whose agents are below it.
    """
    found = {process.pid: process for process in served.processes()}
    roots = [psutil.Process(served.process.pid), *([ray.process] if ray else [])]
    for root in (*roots, *psutil.Process().children()):
        if root in roots or "shuntserve_core.node" in root.cmdline():
            for process in (root, *root.children(recursive=True)):
                found[process.pid] = process
    return list(found.values())


def ticket(config: Path, instance: str, count: int) -> Ticket:
    """For machines of a type."""
    file = config.with_name(f"{instance}.ticket")
    words = ["ticket", str(config), instance, "--uses", str(count), "--valid", "9m"]
    command = [sys.executable, "-m", "shuntserve_core.cli", *words, "--out", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    return Ticket.read(file)


@contextlib.asynccontextmanager
async def machines(config: Path) -> AsyncIterator[None]:
    """That join, one for each node."""
    stop = asyncio.Event()
    joined = []
    for instance, count in (("duo", 1), ("solo", 3)):
        shown = ticket(config, instance, count)
        for number in range(count):
            machine = JoiningMachine(config.with_name(f"{instance}-{number}"), shown.urls, Facts())
            joined.append(asyncio.create_task(machine.run(stop, shown)))
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*joined)


class Said:
    """The surfaces that `serve` has printed."""

    def __init__(self, served: Served) -> None:
        printed = [line.strip() for line in served.said]
        self.lines = printed[printed.index("Open surfaces") + 1 :]
        self._served = served

    def names(self) -> set[str]:
        """Which."""
        heads = {line.partition(":")[0] for line in self.lines}
        return {one.name for one in SURFACES} & heads

    def admits(self, surface: Surface, one: Listener, ray: Ray | None, runs: set[Path]) -> bool:
        """Whether somebody who has read that knows of this listener."""
        if surface is FRONT_DOOR:
            return one.kind == "tcp" and self._served.url == f"http://{one.where}:{one.port}"
        line = next((line for line in self.lines if line.startswith(f"{surface.name}: ")), "")
        if surface is CONTROL:
            return one.kind == "tcp" and f"http://{one.where}:{one.port}, loopback only" in line
        if surface is STORES:
            return one.kind == UNIX and Path(one.where).parent in runs and "of this user" in line
        if surface is RAY:
            inside = ray is not None and ray.sessions in Path(one.where).parents
            return bool(line) and (one.kind != UNIX or inside)
        if surface is JOINING:
            return one.kind == "tcp" and f": {one.where}:{one.port}; " in line
        own = ": each machine's own address; use a private network; " in line
        where = ray.host if ray else LOOPBACK
        return one.kind == "tcp" and one.where == where and (own or f": {LOOPBACK}; " in line)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("engine", ENGINE_NAMES)
@pytest.mark.parametrize("launcher", OF_LAUNCHER)
async def test_nothing_listens_but_what_serve_prints(
    launcher: str, engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Every socket of every process, of every engine with every launcher."""
    if engine == "vllm":
        pytest.importorskip("vllm")
    ray: Ray | None = request.getfixturevalue("ray") if launcher == "ray" else None
    config = write_config(tmp_path, engine, ray)
    async with contextlib.AsyncExitStack() as stack:
        if launcher == "join":
            add_joining(config)
            await stack.enter_async_context(machines(config))
        serve = serving(config, tmp_path / "state", tmp_path / "serve.log")
        served = await stack.enter_async_context(serve)
        answer = await ask(served.session, served.url, asked("llama"))
        assert answer.done, answer.error
        said = Said(served)
        everyone = everything(served, ray)
        found = [(one, whose(one.process, launcher)) for one in listeners(everyone)]
        runs = folders(everyone, "--run-dir")
        unknown = [
            (one.kind, one.where, one.port, one.process.cmdline())
            for one, surfaces in found
            if not any(said.admits(surface, one, ray, runs) for surface in surfaces)
        ]
        private(served, runs, folders(everyone, "--log-dir"))
    assert not unknown
    others = OF_LAUNCHER[launcher]
    own = (AGENTS, STORES, ENGINES, RANKS, CONTROL, *others)
    assert said.names() == {surface.name for surface in own}
    listens = {surface for _, surfaces in found for surface in surfaces}
    assert listens >= {FRONT_DOOR, CONTROL, AGENTS, ENGINES, *others}
    assert (STORES in listens) == (engine != "simulated")


@pytest.mark.timeout(200)
def test_ray_tells_strangers_its_metrics_and_nothing_else(ray: Ray) -> None:
    """As its surface says."""
    assert "metrics" in RAY.leaves
    processes = [ray.process, *ray.process.children(recursive=True)]
    doors = [one for one in listeners(processes) if one.kind == "tcp"]
    answers = [heard(one) for one in doors]
    assert len(answers) > 2
    assert {answer for answer in answers if not answer.startswith("# HELP ")} <= {"", "401"}
    code = f"import ray; ray.init({ray.address!r}, log_to_driver=False)"
    stranger = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"RAY_AUTH_TOKEN": RAY_TOKEN[::-1]},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert stranger.returncode != 0
    assert "Failed to connect to Ray cluster" in stranger.stderr


def heard(one: Listener) -> str:
    """What somebody without a token gets by HTTP: a status that is no answer, or the answer."""
    host = LOOPBACK if one.where in ("0.0.0.0", "::") else one.where
    door = http.client.HTTPConnection(host, one.port, timeout=10)
    try:
        door.request("GET", "/metrics")
        answer = door.getresponse()
        return answer.read().decode() if answer.status == 200 else str(answer.status)
    except (http.client.HTTPException, OSError):  # it does not speak that
        return ""
    finally:
        door.close()


def write_config(directory: Path, engine: str, ray: Ray | None) -> Path:
    """Of a small model."""
    if engine == "vllm":  # whose heads may be no smaller, and whose one engine is enough
        text = EMBEDDED.format(name=models.build("llama", directory, [1, 2]).spec.name)
        text = text.replace('weight_dtype = "float16"', 'weight_dtype = "float32"')
        text = text.replace("count = 3", "count = 1").replace("spares = { solo = 1 }", "")
        text = text.replace("max_batch = 8", "max_batch = 8\nkv_bytes = 4_000_000")
        text = text.replace('name = "embedded"', 'name = "vllm"\nsilence_seconds = 60')
    else:
        model = build("llama", directory, torch.float16)
        write_tokenizer(model.directory, vocab_size=1100)
        text = EMBEDDED.format(name=model.name).replace('name = "embedded"', f'name = "{engine}"')
    text = text.replace("memory_bytes = 1_400_000", "memory_bytes = 20_000_000")
    if ray:
        text += f'\n[launcher]\nname = "ray"\naddress = "{ray.address}"\ndevice = "cpu"\n'
    config = directory / "cluster.toml"
    config.write_text(text)
    return config


def add_joining(config: Path) -> None:
    """Have its nodes be machines that join."""
    with socket.create_server((LOOPBACK, 0)) as free:
        listen = f"{LOOPBACK}:{free.getsockname()[1]}"
    launcher = f'\n[launcher]\nname = "join"\nlisten = "{listen}"\ndevice = "cpu"\n'
    config.write_text(config.read_text() + launcher)


def asked(model: str) -> Asked:
    body = {"model": model, "prompt": [5, 6, 7], "max_tokens": 4, "stream": True}
    return Asked("few", "/v1/completions", body)


def folders(processes: list[psutil.Process], option: str) -> set[Path]:
    """What the agents among them were given."""
    given = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            if option in words:
                given.add(Path(words[words.index(option) + 1]))
    return given


def private(served: Served, runs: set[Path], log_dirs: set[Path]) -> None:
    """Sockets and logs are for this user alone."""
    logs = [*served.state_dir.rglob("*.log"), *served.state_dir.rglob("agent.json")]
    logs += [log for folder in runs | log_dirs for log in folder.glob("*.log")]
    assert runs
    assert logs
    above = {folder.parent for folder in runs} - {Path(tempfile.gettempdir())}
    assert {mode(folder) for folder in runs | above} == {0o700}
    assert {str(log): mode(log) for log in logs} == {str(log): 0o600 for log in logs}


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
