"""How long an engine may take to start, its agents' answers included."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from attrs import evolve

from shuntserve_core.runtime import run
from shuntserve_core.runtime.cluster import RunningCluster
from shuntserve_core.runtime.dispatcher import Dispatcher
from shuntserve_core.runtime.launches import EngineSettings
from shuntserve_core.runtime.manager import Manager
from shuntserve_core.runtime.serve import place
from shuntserve_plugins.balancers.weighted import WeightedRoundRobin
from tests.core.runtime.clusters import tiny_config
from tests.core.runtime.fake_world import FakeAgent, World
from tests.core.runtime.test_manager import MODULES
from tests.core.runtime.virtual_time import run_virtually


class SlowAgent(FakeAgent):
    """Has a template to import before it can fork the first worker."""

    seconds = 0.0

    async def start_engine(self, *arguments: object) -> None:  # type: ignore[override]
        await asyncio.sleep(self.seconds)
        await super().start_engine(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("seconds", "serves"), [(100.0, True), (1e6, False)])
def test_the_limit_is_the_engines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float, *, serves: bool
) -> None:
    """A slow answer is waited for; one that never comes ends the engine like any slow start."""

    world = World()
    monkeypatch.setattr(run.LinkClient, "connect", world.connect)
    monkeypatch.setattr(SlowAgent, "seconds", seconds)

    async def story() -> tuple[bool, str]:
        config = tiny_config(tmp_path)
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
        await asyncio.sleep(400.0)
        served = any(one.serves for one in running.runs.values())
        told = str(list(running.history))
        starting.cancel()
        await manager.close()
        return served, told

    served, told = run_virtually(story(), monkeypatch, MODULES)
    assert served == serves
    assert ("not ready after 300 s" in told) != serves
