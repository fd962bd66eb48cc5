"""Streams that wait: comments keep them open, and clients do not see them."""

from __future__ import annotations

import json

import openai
import pytest

from shuntserve_core.testing.frontdoors import Reply, ScriptedBackend
from tests.plugins.frontdoors.conftest import Serve
from tests.plugins.frontdoors.test_openai_client import HELLO, MODEL

COMMENT = ": waiting"
BODY = {"model": MODEL, "messages": HELLO, "stream": True, "max_tokens": 2}


async def raw(client: openai.AsyncOpenAI, body: dict[str, object]) -> list[str]:
    """The lines of a stream as they are on the wire, but blank ones."""
    url = f"{client.base_url}chat/completions"
    async with client._client.stream("POST", url, json=body) as response:
        assert response.status_code == 200
        return [line async for line in response.aiter_lines() if line]


async def test_a_silent_stream_carries_comments_before_and_between_its_tokens(
    serve: Serve,
) -> None:
    served = await serve(ScriptedBackend(interval=0.4), keep_alive_seconds=0.05)
    async with served.client() as client:
        lines = await raw(client, BODY)
    assert lines[0] == COMMENT
    first = next(i for i, line in enumerate(lines) if line.startswith("data:"))
    assert COMMENT in lines[first:]
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_a_stream_that_is_not_silent_for_so_long_carries_none(
    serve: Serve, seconds: float
) -> None:
    served = await serve(ScriptedBackend(interval=0.1), keep_alive_seconds=seconds)
    async with served.client() as client:
        lines = await raw(client, BODY)
    assert COMMENT not in lines
    assert lines[-1] == "data: [DONE]"


async def test_the_official_client_reads_the_same_with_comments(serve: Serve) -> None:
    texts = []
    for seconds in (0.0, 0.02):
        served = await serve(ScriptedBackend(interval=0.1), keep_alive_seconds=seconds)
        async with served.client() as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=HELLO, stream=True, max_tokens=4
            )
            texts.append([c.choices[0].delta.content async for c in stream if c.choices])
    assert texts[0] == texts[1]
    assert "".join(text or "" for text in texts[1])


async def test_what_fails_after_a_comment_is_an_error_event(serve: Serve) -> None:
    backend = ScriptedBackend(script=lambda _: Reply((), "error", "gone"), interval=0.3)
    served = await serve(backend, keep_alive_seconds=0.05)
    async with served.client() as client:
        lines = await raw(client, BODY)
        with pytest.raises(openai.APIError, match="gone"):
            async for _ in await client.chat.completions.create(
                model=MODEL, messages=HELLO, stream=True
            ):
                pass
    assert lines[0] == COMMENT
    assert "gone" in json.loads(lines[-1].removeprefix("data: "))["error"]["message"]
