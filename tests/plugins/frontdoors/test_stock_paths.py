"""Paths that probes, balancers and dashboards know from vLLM."""

from __future__ import annotations

import asyncio
import hashlib
import json

import pytest

from shuntserve_core import __version__
from shuntserve_core.testing.frontdoors import ScriptedBackend
from shuntserve_plugins.frontdoors.openai.keys import ApiKey
from tests.plugins.frontdoors.conftest import MODEL, Serve
from tests.plugins.frontdoors.http import request, send, until


async def test_version(serve: Serve) -> None:
    served = await serve()
    answer = await send(served.address, request(path="/version", method="GET"))
    assert (answer.status, json.loads(answer.body)) == (200, {"version": __version__})


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_ping_is_ready_in_a_status(serve: Serve, method: str) -> None:
    served = await serve()
    answer = await send(served.address, request(path="/ping", method=method))
    assert (answer.status, answer.body) == (200, b"")
    served.backend.ready = False
    answer = await send(served.address, request(path="/ping", method=method))
    assert (answer.status, answer.body) == (503, b"")


async def test_load_counts_what_is_under_way(serve: Serve) -> None:
    backend = ScriptedBackend(interval=0.02)
    served = await serve(backend)

    async def load() -> object:
        return json.loads((await send(served.address, request(path="/load", method="GET"))).body)

    assert await load() == {"server_load": 0}
    async with served.client() as client:
        streams = [
            await client.completions.create(model=MODEL, prompt="fox", max_tokens=99, stream=True)
            for _ in range(2)
        ]
        assert await load() == {"server_load": 2}
        for stream in streams:
            await stream.close()
    await until(lambda: not backend.running)
    assert await load() == {"server_load": 0}


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", f"/v1/models/{MODEL}"])
async def test_head_is_get_without_a_body(serve: Serve, path: str) -> None:
    served = await serve()
    got = await send(served.address, request(path=path, method="GET"))
    reply = await ask_head(served.address, path)
    assert reply[0] == b"HTTP/1.1 200 OK"
    assert b"Content-Length: %d" % len(got.body) in reply
    assert reply[-1] == b""


async def ask_head(address: tuple[str, int], path: str) -> list[bytes]:
    """All lines of the answer; the connection ends behind it."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request(path=path, method="HEAD", Connection="close"))
    whole = await reader.read()
    writer.close()
    head, body = whole.split(b"\r\n\r\n")
    return [*head.split(b"\r\n"), body]


async def test_head_of_a_server_that_is_not_ready(serve: Serve) -> None:
    served = await serve(ScriptedBackend(ready=False))
    assert (await ask_head(served.address, "/ready"))[0].split()[1] == b"503"
    assert (await ask_head(served.address, "/health"))[0].split()[1] == b"200"


@pytest.mark.parametrize("opened", [True, False])
async def test_who_needs_a_key(serve: Serve, opened: bool) -> None:
    key = ApiKey("a", sha256=hashlib.sha256(b"opensesame-0815-mellon").hexdigest())
    served = await serve(api_keys=(key,), open_metrics=opened)
    statuses = {
        path: (await send(served.address, request(path=path, method="GET"))).status
        for path in ("/ping", "/version", "/load", "/metrics")
    }
    counts = 200 if opened else 401
    assert statuses == {"/ping": 200, "/version": 401, "/load": counts, "/metrics": counts}


async def test_another_method_is_told_which_there_are(serve: Serve) -> None:
    served = await serve()
    answer = await send(served.address, request(path="/ready", method="POST"))
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
