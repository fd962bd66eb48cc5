"""Workers forked from a template are what workers started from nothing are."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp.test_utils import TestServer

from shuntserve_core.forking import templates as agents_end
from shuntserve_core.forking.templates import TemplateFailed, Templates
from shuntserve_core.interfaces.engine import Template, WorkerCommand
from shuntserve_core.interfaces.launcher import AgentAddress
from shuntserve_core.node.agent import Agent
from shuntserve_core.node.client import AgentClient
from shuntserve_core.node.processes import Child
from shuntserve_core.node.server import make_app

MODULE = "tests.core.forking.worker"
ARGV = (sys.executable, "-m", MODULE)
TEMPLATE = Template(MODULE, {"COMMON": "to all"})


class Started:
    """A worker, what it said, and how it ended."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.said: asyncio.Future[dict[str, Any]] = loop.create_future()
        self.code: asyncio.Future[int] = loop.create_future()
        self.child: Child

    async def fork(
        self, templates: Templates, log: Path, stdin: str = "wait", template: Template = TEMPLATE
    ) -> Started:
        command = WorkerCommand("node", ARGV, {"OWN": "to me"}, stdin + "\n")
        self.child = await templates.fork(
            command,
            template,
            name="worker",
            log=log,
            on_line=self.said.set_result,
            on_exit=self.code.set_result,
        )
        return self


@pytest.fixture
async def templates(tmp_path: Path) -> AsyncIterator[Templates]:
    templates = Templates(tmp_path)
    yield templates
    await templates.close()


def pid_of(templates: Templates) -> int:
    (only,) = templates.describe()
    return int(only["pid"])


async def until_restarted(templates: Templates, former: int) -> None:
    while [t["pid"] for t in templates.describe() if t["ready"]] in ([], [former]):  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def test_a_worker_has_what_is_its_own(templates: Templates, tmp_path: Path) -> None:
    log = tmp_path / "log"
    worker = await Started().fork(templates, log)
    said = await worker.said
    pid = worker.child.process.pid
    assert said["imported_by"] == pid_of(templates)
    assert said["pid"] == said["group"] == said["session"] == pid
    assert said["parent"] == os.getpid()
    assert said["directory"] == str(Path.cwd())
    assert said["files"] == [0, 1, 2]
    assert (said["common"], said["own"]) == ("to all", "to me")
    assert said["sigterm_default"]
    assert psutil.Process(pid).cmdline()[0] == " ".join(ARGV)
    assert psutil.Process(pid).name() == Path(sys.executable).name
    await worker.child.stop()
    assert await worker.code == -signal.SIGTERM
    assert not worker.child.alive
    assert f"{pid} was here" in log.read_text()


async def test_workers_share_a_template_and_no_more(templates: Templates, tmp_path: Path) -> None:
    log = tmp_path / "log"
    workers = await asyncio.gather(*(Started().fork(templates, log) for _ in range(4)))
    said = [await worker.said for worker in workers]
    assert len({one["pid"] for one in said}) == 4
    assert {one["imported_by"] for one in said} == {pid_of(templates)}
    assert len({one["random"] for one in said}) == 4
    assert all(one["files"] == [0, 1, 2] for one in said)
    await asyncio.gather(*(worker.child.stop() for worker in workers))


async def test_a_template_for_each_environment(templates: Templates, tmp_path: Path) -> None:
    """It may be read by what is imported, so it is part of what a template is."""
    other = Template(MODULE, {"COMMON": "to others"})
    one = await Started().fork(templates, tmp_path / "log")
    two = await Started().fork(templates, tmp_path / "log", template=other)
    assert (await one.said)["imported_by"] != (await two.said)["imported_by"]
    assert (await two.said)["common"] == "to others"
    await asyncio.gather(one.child.stop(), two.child.stop())


@pytest.mark.parametrize(("told", "code"), [("exit 0", 0), ("exit 7", 7), ("fail", 1)])
async def test_exit_codes_arrive(
    templates: Templates, tmp_path: Path, told: str, code: int
) -> None:
    log = tmp_path / "log"
    worker = await Started().fork(templates, log, told)
    assert await worker.code == code
    assert ("RuntimeError: as asked for" in log.read_text()) == (told == "fail")
    with pytest.raises(ProcessLookupError):  # and no zombie is left
        os.kill(worker.child.process.pid, 0)


async def test_signals_are_exit_codes_too(templates: Templates, tmp_path: Path) -> None:
    worker = await Started().fork(templates, tmp_path / "log")
    await worker.said
    os.kill(worker.child.process.pid, signal.SIGKILL)
    assert await worker.code == -signal.SIGKILL


async def test_input_that_closes_reaches_the_worker(templates: Templates, tmp_path: Path) -> None:
    worker = await Started().fork(templates, tmp_path / "log")
    await worker.said
    assert worker.child.process.stdin is not None
    worker.child.process.stdin.close()
    assert await worker.code == 0


async def test_long_input_arrives(templates: Templates, tmp_path: Path) -> None:
    """Longer than a pipe holds."""
    text = "x" * 300_000
    worker = await Started().fork(templates, tmp_path / "log", text)
    assert (await worker.said)["told"] == text
    await worker.child.stop()


async def test_no_process_and_no_file_is_left(templates: Templates, tmp_path: Path) -> None:
    await (await Started().fork(templates, tmp_path / "log", "exit 0")).code
    before = len(psutil.Process().children()), psutil.Process().num_fds()
    template = psutil.Process(pid_of(templates))
    files, children = template.num_fds(), template.children()
    for _ in range(5):
        worker = await Started().fork(templates, tmp_path / "log", "exit 0")
        await worker.code
        await worker.child.stop()
    assert (len(psutil.Process().children()), psutil.Process().num_fds()) == before
    assert template.num_fds() == files
    assert template.children() == children == []


async def test_workers_outlive_their_template(
    templates: Templates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents_end, "RESTART_SECONDS", 0.0)
    log = tmp_path / "log"
    old = await Started().fork(templates, log)
    former = pid_of(templates)
    os.kill(former, signal.SIGKILL)
    await until_restarted(templates, former)
    new = await Started().fork(templates, log)
    assert (await new.said)["imported_by"] != former
    assert old.child.alive
    os.kill(old.child.process.pid, signal.SIGKILL)
    assert await old.code == -signal.SIGKILL
    await new.child.stop()


async def test_a_template_killed_while_it_imports(templates: Templates, tmp_path: Path) -> None:
    """Who waits for it is told, and the next one gets a new one."""
    forking = asyncio.create_task(Started().fork(templates, tmp_path / "log"))
    while not templates.describe():  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    os.kill(pid_of(templates), signal.SIGKILL)
    with pytest.raises(TemplateFailed, match="did not start"):
        await forking
    worker = await Started().fork(templates, tmp_path / "log")
    await worker.child.stop()


async def test_threads_are_not_forked(templates: Templates, tmp_path: Path) -> None:
    threaded = Template(MODULE, {"START_A_THREAD": "1"})
    with pytest.raises(TemplateFailed, match="runs 2 threads"):
        await Started().fork(templates, tmp_path / "log", template=threaded)


async def test_a_template_that_cannot_be_imported(templates: Templates, tmp_path: Path) -> None:
    with pytest.raises(TemplateFailed, match="did not start"):
        await Started().fork(
            templates, tmp_path / "log", template=Template(MODULE, {"FAIL_TO_IMPORT": "1"})
        )
    (log,) = tmp_path.glob("template-*.log")
    assert "ImportError: as asked for" in log.read_text()


@pytest.mark.parametrize("environment", [{"START_A_THREAD": "1"}, {"FAIL_TO_IMPORT": "1"}, {}])
async def test_an_agent_starts_workers_with_a_template_or_without(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """Where forking fails the worker is started from nothing, and nobody notices."""
    before = psutil.Process().children()  # servers of other tests
    agent = Agent("node", 0, tmp_path)
    events = agent.subscribe()
    command = WorkerCommand("node", ARGV, stdin="exit 3\n", template=Template(MODULE, environment))
    await agent.start_engine("engine", [command], {})
    said, ended = await events.get(), await events.get()
    assert (said["imported_by"] == said["pid"]) == bool(environment)
    expected = {"event": "exit", "engine_id": "engine", "worker": 0, "code": 3}
    assert ended.items() >= expected.items()
    assert f"{said['pid']} was here" in ended["last_words"]
    await agent.close()
    assert psutil.Process().children() == before


async def test_a_node_gets_ready_when_told(tmp_path: Path) -> None:
    """So that a spare has its template before it has anything to run; told twice, it has one."""
    agent = Agent("node", 0, tmp_path)
    async with TestServer(make_app(agent, "secret")) as server, aiohttp.ClientSession() as session:
        address = AgentAddress("node", str(server.make_url("")).rstrip("/"), "secret", "127.0.0.1")
        client = AgentClient(address, session)
        await client.prepare(TEMPLATE)
        await client.prepare(TEMPLATE)
        (template,) = (await client.describe())["templates"]
        assert template["module"] == MODULE
        assert psutil.Process(template["pid"]).ppid() == os.getpid()
    await agent.close()


AGENT = """
import asyncio, sys
from pathlib import Path
from tests.core.forking.test_templates import Started, Templates

async def main():
    worker = await Started().fork(Templates(Path(sys.argv[1])), Path(sys.argv[1]) / "log")
    await worker.said
    print(worker.child.process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_everything_dies_with_the_agent(tmp_path: Path) -> None:
    """Even a worker that is stopped, and so cannot notice anything itself."""
    with subprocess.Popen([sys.executable, "-c", AGENT, tmp_path], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        worker = psutil.Process(int(agent.stdout.readline()))
        family = psutil.Process(agent.pid).children()
        assert len(family) == 2
        worker.suspend()
        agent.kill()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
