"""What people are told of an engine that died, and of a cluster that serves nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shuntserve_core.cli import status as status_command
from shuntserve_core.cli.serve import _Screen
from shuntserve_core.runtime import run
from shuntserve_core.runtime.cluster import RunningCluster
from shuntserve_core.runtime.dispatcher import Dispatcher
from shuntserve_core.runtime.launches import EngineSettings
from shuntserve_core.runtime.manager import Manager
from shuntserve_core.runtime.serve import Report, place
from shuntserve_core.runtime.waiting import Announcer
from shuntserve_plugins.balancers.weighted import WeightedRoundRobin
from tests.core.runtime.clusters import tiny_config
from tests.core.runtime.fake_world import FakeAgent, FakeProcess, World
from tests.core.runtime.test_manager import MODULES
from tests.core.runtime.virtual_time import run_virtually


class TalkingWorld(World):
    """Its agents quote the logs of workers that end."""

    def tell(self, process: FakeProcess, event: dict[str, Any]) -> None:
        if event["event"] == "exit":
            words = ["Traceback", "OutOfMemoryError: [/bold] no room"]
            event = {**event, "who": "rank 1", "log": "/state/engine.log", "last_words": words}
        super().tell(process, event)


async def _bereft(directory: Path, world: World) -> tuple[RunningCluster, list[str], list[str]]:
    """A cluster that loses every engine at once and gets others; what was said, and then seen."""
    config = tiny_config(directory)
    running = RunningCluster(
        config,
        EngineSettings(world, "fake", config.model, "model", 512, 8, 4096),
        world,
        Dispatcher(WeightedRoundRobin()),
        lambda address: FakeAgent(world, address),  # type: ignore[arg-type, return-value]
    )
    manager = Manager(running)
    seen = [running.waits_for]
    starting = asyncio.create_task(manager.start(*_parts(config)))
    await asyncio.sleep(1.0)
    seen.append(running.waits_for)
    await starting
    await asyncio.sleep(20.0)
    seen.append(running.waits_for)
    said: list[str] = []
    Announcer(running, said.append)
    for engine in [*world.engines]:
        world.kill_engine(engine)
    await asyncio.sleep(60.0)
    await manager.close()
    return running, said, seen


def _parts(config: Any) -> tuple[Any, Any]:
    placement, spares = place(config)
    return placement.pipelines, spares


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    talking = TalkingWorld()
    monkeypatch.setattr(run.LinkClient, "connect", talking.connect)
    return talking


def test_the_log_of_what_died_is_quoted_and_not_the_link_that_broke_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, world: World
) -> None:
    running, _, _ = run_virtually(_bereft(tmp_path, world), monkeypatch, MODULES)
    failures = [line["reason"] for line in running.history if line["what"] == "pipeline failed"]
    assert failures
    for reason in failures:
        head, *quoted = reason.splitlines()
        assert head.startswith("rank 1 on ")
        assert head.endswith(
            "was ended by signal 9 (SIGKILL); the end of its log, /state/engine.log:"
        )
        assert quoted == ["    Traceback", "    OutOfMemoryError: [/bold] no room"]


def test_who_serves_nobody_says_what_is_waited_for_and_when_that_is_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, world: World
) -> None:
    _, said, seen = run_virtually(_bereft(tmp_path, world), monkeypatch, MODULES)
    assert seen[0] == "waiting for the next try"
    assert seen[1].startswith("waiting for p1 (")
    assert seen[2] == ""
    assert len(said) == 2, said
    assert said[0].startswith("waiting for ")
    assert said[1] == ""


def test_serving_is_said_only_while_it_is_true(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path)
    screen = _Screen(config)
    screen.ready(Report("http://h:1", "http://c:1", None, (), (), "waiting for p1 (loading)"))
    first = capsys.readouterr()
    assert "Serving tiny" not in first.out
    assert "Not serving: waiting for p1 (loading)" in first.err
    screen.changed("")
    assert "Serving tiny at http://h:1" in capsys.readouterr().out
    screen.changed("waiting for the next try")
    assert "Not serving: waiting for the next try" in capsys.readouterr().err
    screen.changed("")
    assert "Serving again at http://h:1" in capsys.readouterr().err


def test_status_shows_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, world: World) -> None:
    """A log's brackets are no markup."""
    running, _, _ = run_virtually(_bereft(tmp_path, world), monkeypatch, MODULES)
    report = {**running.status(), "waits_for": "waiting for the next try"}
    report["history"] = [line for line in report["history"] if line["what"] == "pipeline failed"]

    class Fake:
        def call(self, *_: object) -> dict[str, Any]:
            return report

    monkeypatch.setattr(status_command.Control, "find", lambda *_: Fake())
    result = CliRunner().invoke(status_command.status, [], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "Not serving: waiting for the next try" in result.output
    assert "OutOfMemoryError: [/bold] no room" in result.output
