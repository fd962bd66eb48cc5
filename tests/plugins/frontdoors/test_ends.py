"""One timer ends every request that takes too long, each at its own time."""

from __future__ import annotations

import asyncio

import pytest

from shuntserve_plugins.frontdoors.openai.ends import Ends
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from tests.core.runtime.virtual_time import run_virtually


def test_each_is_ended_when_its_own_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: dict[str, tuple[float, int]] = {}

    async def three() -> Ends:
        loop, ends = asyncio.get_running_loop(), Ends(10.0)
        enders = {}
        for name in ("first", "over", "last"):
            enders[name] = lambda error, name=name: ended.update(
                {name: (loop.time(), error.status)}
            )
            ends.add(enders[name])
            await asyncio.sleep(3.0)
        ends.discard(enders["over"])
        await asyncio.sleep(30.0)
        ends.add(enders["over"])
        await asyncio.sleep(30.0)
        return ends

    assert not run_virtually(three(), monkeypatch, [])
    assert ended == {"first": (10.0, 408), "last": (16.0, 408), "over": (49.0, 408)}


def test_enders_may_end_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both() -> list[int]:
        ends, told = Ends(1.0), []

        def first(error: ApiError) -> None:
            told.append(1)
            ends.discard(second)

        def second(error: ApiError) -> None:
            told.append(2)

        ends.add(first)
        ends.add(second)
        await asyncio.sleep(5.0)
        assert not len(ends)
        return told

    assert run_virtually(both(), monkeypatch, []) == [1]
