"""Large answers in one piece are encoded and written a little at a time, and are what they were."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from shuntserve_core.testing.frontdoors import ScriptedBackend
from shuntserve_plugins.frontdoors.openai import logprobs, pieces
from tests.plugins.frontdoors.conftest import MODEL, Serve
from tests.plugins.frontdoors.http import hang_up, request, send, until

CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "hello hello hello"}],
    "max_tokens": 60,
    "n": 3,
    "logprobs": True,
    "top_logprobs": 5,
    "prompt_logprobs": 4,
    "seed": 1,
}
TEXT = {
    "model": MODEL,
    "prompt": ["hello hello hello", "hello"],
    "max_tokens": 60,
    "n": 2,
    "logprobs": 5,
    "prompt_logprobs": 3,
    "echo": True,
    "seed": 1,
}
BODIES = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("entries", [1, 13, 100_000])
async def test_however_it_is_cut_the_answer_is_the_same(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any], entries: int
) -> None:
    served = await serve()
    wanted = json.loads((await send(served.address, request(body, path=path))).body)
    monkeypatch.setattr(pieces, "ENTRIES", entries)
    monkeypatch.setattr(pieces, "WHOLE", 1000)
    monkeypatch.setattr(pieces, "TURN_SECONDS", 0.0)
    answer = await send(served.address, request(body, path=path))
    found = json.loads(answer.body)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Content-Length"] == str(len(answer.body))
    for whole in (wanted, found):
        del whole["id"], whole["created"]
    assert found == wanted
    assert all(choice["logprobs"] for choice in found["choices"])
    scores = [*found["choices"], found]
    assert any(len(one.get("prompt_logprobs", ())) > 2 for one in scores)


async def test_few_entries_are_encoded_at_a_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    cut = pieces.slices

    def noted(items: Any, alternatives: int) -> Iterator[list[Any]]:
        for some in cut(items, alternatives):
            sizes.append(len(some) * (1 + alternatives))
            yield some

    monkeypatch.setattr(logprobs, "slices", noted)
    monkeypatch.setattr(pieces, "ENTRIES", 50)
    served = await serve()
    for path, body in BODIES:
        assert (await send(served.address, request(body, path=path))).status == 200
    assert sum(sizes) > 3 * 60 * 6 + 4 * 60 * 6
    assert max(sizes) <= 50


async def test_prompts_echoed_in_streams_are_encoded_a_little_at_a_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve()
    body = TEXT | {"stream": True, "prompt_logprobs": None}
    path = "/v1/completions"
    wanted = await send(served.address, request(body, path=path))
    sizes: list[int] = []
    encode = logprobs.completion_logprobs

    def noted(tokenizer: Any, tokens: Any, *rest: Any) -> Any:
        sizes.append(len(tokens))
        return encode(tokenizer, tokens, *rest)

    monkeypatch.setattr(logprobs, "completion_logprobs", noted)
    monkeypatch.setattr(pieces, "ENTRIES", 1)
    monkeypatch.setattr(pieces, "TURN_SECONDS", 0.0)
    answer = await send(served.address, request(body, path=path))
    assert set(sizes) == {1}
    assert answer.headers.keys() == wanted.headers.keys()
    assert events_of(answer.body) == events_of(wanted.body)
    first = {event["choices"][0]["index"]: event for event in reversed(events_of(answer.body))}
    assert sorted(first) == [0, 1, 2, 3]
    assert all(event["choices"][0]["text"].startswith("hello") for event in first.values())
    assert answer.body.endswith(b"data: [DONE]\n\n")


def events_of(body: bytes) -> list[dict[str, Any]]:
    """By answer, each in its order: what comes of several in one turn may come in any."""
    lines = [line[6:] for line in body.split(b"\n\n") if line.startswith(b"data: {")]
    events = [json.loads(line) for line in lines]
    for event in events:
        del event["id"], event["created"]
    return sorted(events, key=lambda event: event["choices"][0]["index"])


async def test_others_have_their_turns_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "TURN_SECONDS", 0.0)
    loop, turns = asyncio.get_running_loop(), 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    turn()
    assert await pieces.in_turns(iter([b"x"] * 100)) == [b"x"] * 100
    assert turns >= 100


async def test_who_leaves_a_large_answer_unread_holds_nothing(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve(ScriptedBackend(per_step=50))
    reader, writer = await asyncio.open_connection(*served.address, limit=1000)
    body = CHAT | {"max_tokens": 2000, "top_logprobs": 20, "prompt_logprobs": None}
    writer.write(request(body, path="/v1/chat/completions"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    await hang_up(writer)
    site = served.door._site
    assert site is not None
    await until(lambda: site.idle.is_set())
    page = await send(served.address, request(path="/metrics", method="GET"))
    assert b"shuntserve_requests_in_flight 0.0" in page.body


@pytest.mark.parametrize("lists", [[], [b"[]"], [b"[1,2]", b"[]", b"[3]"], [b"[]", b"[1]"]])
def test_arrays_are_joined(lists: list[bytes]) -> None:
    joined = json.loads(b"".join(pieces.array(lists)))
    assert joined == [item for one in lists for item in json.loads(one)]
