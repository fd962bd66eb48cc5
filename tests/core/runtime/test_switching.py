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

    plan = Pipeline((Stage("x", 1, 8, "node", (0,)),), Estimate(1, 1, 1, 0, 0, 0, ()))
    serves, coming = state is PipelineState.SERVING, state is PipelineState.STANDBY
    return SimpleNamespace(
        name=name, state=state, plan=plan, serves=serves, coming=coming, activate=activate,
        switch=None, switch_seconds=None,
    )  # fmt: skip


@pytest.mark.parametrize(("old_bytes", "new_bytes", "drops"), [(5, 5, False), (5, 6, True)])
def test_weights_make_room_before_kv_memory_grows(
    monkeypatch: pytest.MonkeyPatch, old_bytes: int, new_bytes: int, *, drops: bool
) -> None:
    """The store of a GPU may hold layers that only the old engine needed."""
    said: list[str] = []
    told: list[str] = []
    old = run_of("old", PipelineState.SERVING, said)
    new = run_of("new", PipelineState.STANDBY, said)
    old.kv_bytes, new.kv_bytes = old_bytes, new_bytes

    async def retire(_cluster: object, run: Any, _reason: str) -> None:
        said.append(f"{run.name} retired")

    async def release(_cluster: object) -> None:
        said.append("weights dropped")

    monkeypatch.setattr(changes, "retire", retire)
    monkeypatch.setattr(changes, "_release_weights", release)
    monkeypatch.setattr(changes, "admit", lambda _, run: said.append(f"{run.name} admitted"))
    cluster: Any = SimpleNamespace(
        runs={"old": old, "new": new},
        dispatcher=SimpleNamespace(
            observer=SimpleNamespace(switched=lambda part, _: told.append(part))
        ),
    )
    asyncio.run(changes._take_over(cluster, new))
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
