"""What a stream writes, and when: one write for each step of an engine."""

from __future__ import annotations

import json

import pytest

from shuntserve_core.testing.frontdoors import ScriptedBackend
from shuntserve_plugins.frontdoors.openai.stream import EventStream
from tests.plugins.frontdoors.conftest import MODEL, Serve
from tests.plugins.frontdoors.http import request, send

MESSAGES = [{"role": "user", "content": "hello hello"}]


@pytest.mark.parametrize(("answers", "per_step"), [(1, 1), (1, 3), (4, 1)])
async def test_a_step_is_one_write_however_many_answers_there_are(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, answers: int, per_step: int
) -> None:
    backend = ScriptedBackend(per_step=per_step)
    served = await serve(backend)
    writes: list[tuple[int, bytes]] = []
    write = EventStream._write

    def noted(stream: EventStream, events: bytes) -> None:
        writes.append((backend.steps, events))
        write(stream, events)

    monkeypatch.setattr(EventStream, "_write", noted)
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 12, "stream": True, "n": answers}
    answer = await send(served.address, request(body, path="/v1/chat/completions"))
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert b"".join(events for _, events in writes) == answer.body
    assert len(writes) == 12 // per_step
    assert len({step for step, _ in writes}) == len(writes)


async def test_a_first_token_leaves_in_the_turn_in_which_it_comes(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve(ScriptedBackend())
    turns: list[bool] = []
    write, send_ = EventStream._write, EventStream.send
    sending = False

    def noted(stream: EventStream, events: bytes) -> None:
        turns.append(sending)
        write(stream, events)

    def sent(stream: EventStream, events: bytes) -> None:
        nonlocal sending
        sending = True
        send_(stream, events)
        sending = False

    monkeypatch.setattr(EventStream, "_write", noted)
    monkeypatch.setattr(EventStream, "send", sent)
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 3, "stream": True}
    answer = await send(served.address, request(body, path="/v1/chat/completions"))
    events = [line for line in answer.body.split(b"\n\n") if line.startswith(b"data: {")]
    assert json.loads(events[0][6:])["choices"][0]["delta"]["role"] == "assistant"
    assert turns
    assert all(turns)
