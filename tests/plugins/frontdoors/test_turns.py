"""Requests of many long prompts leave the event loop to others between them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from attrs import define, field

from shuntserve_core.interfaces.frontdoor import Refused, Sink
from shuntserve_core.journal import Journal
from shuntserve_core.testing.frontdoors import Reply, ScriptedBackend
from shuntserve_plugins.frontdoors.openai import completions, generation
from shuntserve_plugins.frontdoors.openai.turns import Turns
from tests.plugins.frontdoors.conftest import MODEL, Serve
from tests.plugins.frontdoors.http import hang_up, request, send, until

PROMPTS = 8
BODY = {"model": MODEL, "prompt": [[5, 6, 7, 8]] * PROMPTS, "max_tokens": 3}


@define(eq=False)
class Counting(ScriptedBackend):
    """Notes in which turn of the loop each request comes, and refuses from the nth on."""

    most: int = 1000
    turn: int = 0
    turns: list[int] = field(factory=list)

    def submit(self, journal: Journal, sink: Sink) -> None:
        if len(self.submitted) >= self.most:
            raise Refused(429, "the queue is full", 1.0)
        if not self.submitted:
            self._count()
        self.turns.append(self.turn)
        super().submit(journal, sink)

    def _count(self) -> None:
        self.turn += 1
        if self.turn < 1000:
            asyncio.get_running_loop().call_soon(self._count)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (generation, completions):
        monkeypatch.setattr(module, "Turns", partial(Turns, 10))


@pytest.mark.parametrize("body", [BODY, {**BODY, "prompt": [5, 6, 7, 8], "n": PROMPTS}])
@pytest.mark.parametrize("stream", [False, True])
async def test_few_tokens_are_handed_over_in_each_turn(
    serve: Serve, stream: bool, body: dict[str, Any]
) -> None:
    backend = Counting()
    served = await serve(backend)
    answer = await send(served.address, request({**body, "stream": stream}))
    assert answer.status == 200
    assert len(backend.turns) == PROMPTS
    assert max(map(backend.turns.count, backend.turns)) == 2
    if stream:
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert answer.body.count(b'"finish_reason":"length"') == PROMPTS


async def test_a_refusal_in_a_later_turn_is_still_a_status(serve: Serve) -> None:
    backend = Counting(most=5)
    served = await serve(backend)
    answer = await send(served.address, request({**BODY, "stream": True}))
    assert (answer.status, answer.error["code"]) == (429, "queue_full")
    await until(lambda: not backend.running)


async def test_a_failure_before_all_are_handed_over_is_a_status_too(serve: Serve) -> None:
    backend = Counting(script=lambda _: Reply((), "error", "broken", status=500))
    served = await serve(backend)
    answer = await send(served.address, request({**BODY, "stream": True}))
    assert answer.status == 500
    assert len(backend.submitted) < PROMPTS
    assert not backend.running


async def test_who_leaves_meanwhile_leaves_nothing_running(serve: Serve) -> None:
    backend = Counting(script=lambda _: Reply((5,) * 4000), interval=0.01)
    served = await serve(backend)
    _, writer = await asyncio.open_connection(*served.address)
    writer.write(request({**BODY, "max_tokens": 4000, "stream": True}))
    await until(lambda: bool(backend.submitted))
    await hang_up(writer)
    site = served.door._site
    assert site is not None
    await until(lambda: not backend.running and site.idle.is_set())
    assert len(backend.cancelled) == len(backend.submitted)
