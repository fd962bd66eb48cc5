"""How long engines may take to start, and what is said when they have."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from shuntserve_core.runtime import run
from shuntserve_core.runtime.cluster import RunningCluster
from shuntserve_core.runtime.dispatcher import Dispatcher
from shuntserve_core.runtime.launches import EngineSettings
from shuntserve_core.runtime.manager import Manager
from shuntserve_core.runtime.serve import copies_warning, place
from shuntserve_plugins.balancers.weighted import WeightedRoundRobin
from tests.core.runtime.clusters import tiny_config
from tests.core.runtime.fake_world import FakeAgent, FakeProcess, World
from tests.core.runtime.test_manager import MODULES
from tests.core.runtime.virtual_time import run_virtually


class SlowAgent(FakeAgent):
    """Has a template to import before it can fork the first worker."""

    seconds = 0.0

    async def start_engine(self, *arguments: object) -> None:  # type: ignore[override]
        await asyncio.sleep(self.seconds)
        await super().start_engine(*arguments)  # type: ignore[arg-type]


class CopyingWorld(World):
    """Its workers cannot borrow all of their weights."""

    copied = 0

    def tell(self, process: FakeProcess, event: dict[str, Any]) -> None:
        if event["event"] == "ready":
            event = {**event, "weights": {"lent": 1000, "copied": self.copied}}
        super().tell(process, event)


async def started(directory: Path, world: World, wait: float) -> RunningCluster:
    """A cluster so many seconds after the start, and closed again."""
    config = tiny_config(directory)
    settings = EngineSettings(world, "fake", config.model, "model", 512, 8, 4096)
    running = RunningCluster(
        config,
        evolve(settings, start_seconds=300.0),
        world,
        Dispatcher(WeightedRoundRobin()),
        lambda address: SlowAgent(world, address),  # type: ignore[arg-type, return-value]
    )
    manager = Manager(running)
    placement, spares = place(config)
    starting = asyncio.create_task(manager.start(placement.pipelines, spares))
    await asyncio.sleep(wait)
    starting.cancel()
    await manager.close()
    return running


@pytest.mark.parametrize(("seconds", "serves"), [(100.0, True), (1e6, False)])
def test_a_slow_answer_is_waited_for_as_long_as_a_slow_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float, *, serves: bool
) -> None:
    """One that never comes ends the engine like any slow start."""
    world = World()
    monkeypatch.setattr(run.LinkClient, "connect", world.connect)
    monkeypatch.setattr(SlowAgent, "seconds", seconds)
    running = run_virtually(started(tmp_path, world, 400.0), monkeypatch, MODULES)
    told = str(list(running.history))
    assert any(one.serving_since for one in running.runs.values()) == serves
    assert ("not ready after 300 s" in told) != serves


@pytest.mark.parametrize(("copied", "warns"), [(0, False), (900, False), (30_000_000, True)])
def test_copies_of_weights_are_told_of_in_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, copied: int, *, warns: bool
) -> None:
    world = CopyingWorld()
    monkeypatch.setattr(run.LinkClient, "connect", world.connect)
    monkeypatch.setattr(CopyingWorld, "copied", copied)
    running = run_virtually(started(tmp_path, world, 60.0), monkeypatch, MODULES)
    runs = list(running.runs.values())
    ranks = sum(len(one.node_names) for one in runs)
    warning = copies_warning(runs, "float32")
    assert ranks
    assert bool(warning) == warns
    assert not warns or f"{ranks * 30} MB" in warning
    assert "\n" not in warning


class FullWorld(World):
    """Its workers find that their GPU has no room."""

    def tell(self, process: FakeProcess, event: dict[str, Any]) -> None:
        if event["event"] == "ready":
            event = {**event, "event": "failed", "reason": "0.50 GiB are free"}
        super().tell(process, event)


def test_a_worker_that_ends_for_a_reason_is_quoted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = FullWorld()
    monkeypatch.setattr(run.LinkClient, "connect", world.connect)
    running = run_virtually(started(tmp_path, world, 20.0), monkeypatch, MODULES)
    failures = [line["reason"] for line in running.history if line["what"] == "pipeline failed"]
    assert failures
    assert all("0.50 GiB are free" in reason for reason in failures), failures


class MeasuringWorld(World):
    """Its workers say what their largest step took."""

    def tell(self, process: FakeProcess, event: dict[str, Any]) -> None:
        if event["event"] == "ready":
            event = {**event, "working_bytes": 123}
        super().tell(process, event)


def test_what_workers_measured_is_in_the_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = MeasuringWorld()
    monkeypatch.setattr(run.LinkClient, "connect", world.connect)
    running = run_virtually(started(tmp_path, world, 20.0), monkeypatch, MODULES)
    assert {pipeline["working_bytes"] for pipeline in running.status()["pipelines"]} == {123}


class MisleadingWorld(World):
    """Where an engine said that it listens, another one answers."""

    async def connect(self, *arguments: Any) -> Any:
        link = await super().connect(*arguments)
        link.info = evolve(link.info, engine_id="somebody else's")
        return link


def test_requests_go_to_no_engine_but_the_one_that_was_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = MisleadingWorld()
    monkeypatch.setattr(run.LinkClient, "connect", world.connect)
    running = run_virtually(started(tmp_path, world, 20.0), monkeypatch, MODULES)
    assert not any(one.serving_since for one in running.runs.values())
    reasons = [line["reason"] for line in running.history if line["what"] == "pipeline failed"]
    assert reasons
    assert all(reason.startswith("another engine answers at") for reason in reasons), reasons
