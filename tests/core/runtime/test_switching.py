"""The order of things at a switch, and what is told of it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from shuntserve_core.runtime import changes
from shuntserve_core.runtime.states import PipelineState
from shuntserve_core.runtime.switching import PARTS, READY, Switch
from shuntserve_core.types import Estimate, Pipeline, Stage


def run_of(name: str, state: PipelineState, said: list[str]) -> Any:
    async def activate() -> None:
        said.append(f"{name} activated")

    gone = asyncio.Event()
    gone.set()
    plan = Pipeline((Stage("x", 1, 8, "node", (0,)),), Estimate(1, 1, 1, 0, 0, 0, ()))
    return SimpleNamespace(
        name=name, state=state, plan=plan, serves=state is PipelineState.SERVING, gone=gone,
        activate=activate, switch=None, switch_seconds=None,
    )  # fmt: skip


@pytest.mark.parametrize("drops", [False, True])
def test_weights_make_room_before_kv_memory_grows(
    monkeypatch: pytest.MonkeyPatch, *, drops: bool
) -> None:
    """The store of a GPU may hold layers that only the old engine needed."""
    said: list[str] = []
    told: list[str] = []
    old = run_of("old", PipelineState.SERVING, said)
    new = run_of("new", PipelineState.STANDBY, said)

    async def release(_cluster: object) -> None:
        said.append("weights dropped")

    monkeypatch.setattr(changes, "retire", lambda _, run, __: said.append(f"{run.name} retired"))
    monkeypatch.setattr(changes, "release_weights", release)
    monkeypatch.setattr(changes, "admit", lambda _, run: said.append(f"{run.name} admitted"))
    cluster: Any = SimpleNamespace(
        dispatcher=SimpleNamespace(
            observer=SimpleNamespace(switched=lambda part, _: told.append(part))
        ),
    )
    asyncio.run(changes.switch(cluster, new, [old], release_first=drops))
    dropped = ["weights dropped"] if drops else []
    assert said == ["old retired", *dropped, "new activated", "new admitted"]
    assert told == ["end", "ready"]
    assert new.switch_seconds > 0


def test_the_gap_is_what_clients_could_see() -> None:
    told: list[tuple[str, float]] = []
    switch = Switch(lambda part, seconds: told.append((part, seconds)))
    switch.took(READY, 0.25)
    switch.first_token(0.5)
    assert told == [("ready", 0.25), ("first_token", 0.5), ("gap", 0.75)]
    assert set(switch.seconds) <= set(PARTS)
