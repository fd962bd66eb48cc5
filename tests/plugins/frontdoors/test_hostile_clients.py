"""Whatever clients send, each is answered and the service stays well."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import random
import resource
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest

from shuntserve_core.testing.frontdoors import Reply, ScriptedBackend
from shuntserve_plugins.frontdoors.openai.choices import Choice
from shuntserve_plugins.frontdoors.openai.context import Call
from shuntserve_plugins.frontdoors.openai.generation import Generation
from shuntserve_plugins.frontdoors.openai.limits import Limits
from shuntserve_plugins.frontdoors.openai.stream import EventStream
from tests.plugins.frontdoors.conftest import MODEL, Serve, Served
from tests.plugins.frontdoors.http import hang_up, read_answer, request, send, until

GOOD = {"model": MODEL, "prompt": "fox", "max_tokens": 2}


async def assert_well(served: Served) -> None:
    answer = await send(served.address, request(GOOD))
    assert answer.status == 200
    assert not served.backend.running


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"model": "\xff\xfe"}', "not JSON"),
        (b'{"model": "\\ud800"}', "not JSON"),
        (
            b'{"messages": [{"role": "u"}], "chat_template_kwargs": {"a": ' + b"[" * 100_000,
            "nested too deeply",
        ),
        (b"[]", "Expected `object`"),
        (b"null", "Expected `object`"),
        (b'{"model": NaN}', "not JSON"),
        (b'{"model": "m", "prompt": "x", "seed": 99999999999999999999999}', "seed"),
        (b'{"model": "m", "prompt": "x", "temperature": 1e999}', "temperature"),
    ],
)
async def test_broken_bodies(serve: Serve, body: bytes, words: str) -> None:
    served = await serve()
    path = "/v1/chat/completions" if b"messages" in body else "/v1/completions"
    answer = await send(served.address, request(body, path))
    assert answer.status == 400
    assert words in answer.error["message"]
    await assert_well(served)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(path="/nowhere"), 404),
        (request(method="GET", path="/v1/completions"), 405),
        (request(method="DELETE", path="/v1/models"), 405),
        (request(b"a=b", Content_Type="application/x-www-form-urlencoded"), 415),
        (request(b"{}", Content_Type="text/plain"), 415),
        (request(gzip.compress(b" " * (50 << 20)), Content_Encoding="gzip"), 415),
        (request(GOOD, Content_Length="999999999999"), 413),
        (request(GOOD, X_Long="x" * 70_000), 431),
        (request(GOOD, **{f"X_{i}": "x" for i in range(200)}), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello TLS\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (request(GOOD, Content_Length="-5"), 400),
        (b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
async def test_every_error_has_one_shape(serve: Serve, data: bytes, status: int) -> None:
    served = await serve()
    answer = await send(served.address, data)
    assert answer.status == status
    assert answer.error["message"]
    if status == 405:
        assert answer.headers["Allow"] in ("GET", "POST", "GET, HEAD")
    await assert_well(served)


@pytest.mark.parametrize("levels", [65, 300, 900])
@pytest.mark.parametrize("where", ["response_format", "tools", "chat_template_kwargs"])
async def test_absurd_nesting(serve: Serve, levels: int, where: str) -> None:
    served = await serve()
    deep = '{"a":' * levels + "1" + "}" * levels
    function = f'{{"type": "function", "function": {{"name": "f", "parameters": {deep}}}}}'
    written = {
        "response_format": f'{{"type": "json_schema", "json_schema": {{"schema": {deep}}}}}',
        "tools": f'[{function}], "tool_choice": "required"',
        "chat_template_kwargs": deep,
    }
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "fox"}], "max_tokens": 1}
    body = f'{json.dumps(chat)[:-1]}, "{where}": {written[where]}}}'
    answer = await send(served.address, request(body.encode(), "/v1/chat/completions"))
    # The engine never sees the last: how deep it may be is up to the template.
    assert answer.status in ((200, 400) if where == "chat_template_kwargs" else (400,))
    await assert_well(served)


@pytest.mark.parametrize("told", [True, False])
async def test_a_body_of_100_mb(serve: Serve, told: bool) -> None:
    """Refused at once where its length is told, and at the limit where it is not."""
    served = await serve(limits=Limits(body_bytes=1 << 20))
    head = request(Content_Length=str(100 << 20))
    if not told:
        head = request(Transfer_Encoding="chunked").replace(b"Content-Length: 0\r\n", b"")
    reader, writer = await asyncio.open_connection(*served.address)
    piece = b"x" * (1 << 20)
    framed = piece if told else b"100000\r\n" + piece + b"\r\n"

    async def push() -> None:
        writer.write(head)
        for _ in range(100):
            writer.write(framed)
            await writer.drain()

    pushing = asyncio.create_task(push())
    answer = await read_answer(reader)
    assert answer.status == 413
    assert answer.error["code"] == "body_too_large"
    await hang_up(writer)
    pushing.cancel()
    await asyncio.gather(pushing, return_exceptions=True)
    await assert_well(served)


async def test_expect_continue(serve: Serve) -> None:
    served = await serve()
    whole = request(GOOD, Expect="100-continue")
    head, _, body = whole.partition(b"\r\n\r\n")
    reader, writer = await asyncio.open_connection(*served.address)
    writer.write(head + b"\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await read_answer(reader)).status == 200
    await hang_up(writer)


async def test_slow_headers_and_slow_bodies_get_408(serve: Serve) -> None:
    served = await serve(limits=Limits(header_seconds=0.3, body_seconds=0.3))
    whole = request(GOOD)

    async def trickle(data: bytes) -> int:
        reader, writer = await asyncio.open_connection(*served.address)

        async def push() -> None:
            for byte in data:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.02)

        pushing = asyncio.create_task(push())
        answer = await read_answer(reader)
        pushing.cancel()
        with suppress(ConnectionResetError):  # what it still sent met a closed connection
            assert await reader.read() == b""
        assert answer.error["message"]
        await hang_up(writer)
        return answer.status

    slow_body = asyncio.open_connection(*served.address)
    reader, writer = await slow_body
    writer.write(whole[:-5])
    statuses = await asyncio.gather(*(trickle(whole) for _ in range(50)))
    assert statuses == [408] * 50
    assert (await read_answer(reader)).status == 408
    await hang_up(writer)
    await assert_well(served)


@asynccontextmanager
async def many_connections(served: Served, count: int) -> AsyncIterator[list[Any]]:
    async with AsyncExitStack() as stack:
        streams = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection(*served.address)
            stack.push_async_callback(hang_up, writer)
            streams.append((reader, writer))
        yield streams


async def test_ten_thousand_idle_connections(serve: Serve) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 10_000 if hard == resource.RLIM_INFINITY else min(10_000, hard // 2 - 400)
    served = await serve(limits=Limits(connections_per_address=20_000))  # raises the soft limit
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * count + 400:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2 * count + 400, hard))
    async with many_connections(served, count):
        await assert_well(served)
        page = await send(served.address, request(path="/metrics", method="GET"))
        assert f"shuntserve_connections {count + 1}.0".encode() in page.body


async def test_idle_connections_are_closed(serve: Serve) -> None:
    served = await serve(limits=Limits(idle_seconds=0.2))
    async with many_connections(served, 20) as streams:
        ends = await asyncio.gather(*(reader.read() for reader, _ in streams))
    assert ends == [b""] * 20


async def test_one_connection_too_many_is_told_so(serve: Serve) -> None:
    served = await serve(limits=Limits(connections=3))
    async with many_connections(served, 3):
        reader, writer = await asyncio.open_connection(*served.address)
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        await hang_up(writer)
    await asyncio.sleep(0.05)
    await assert_well(served)


async def test_connections_of_one_address_are_counted(serve: Serve) -> None:
    served = await serve(limits=Limits(connections_per_address=3))
    async with many_connections(served, 3):
        reader, writer = await asyncio.open_connection(*served.address)
        assert (await read_answer(reader)).status == 429
        await hang_up(writer)
    await asyncio.sleep(0.05)
    await assert_well(served)


async def test_heads_are_bounded_as_a_whole(serve: Serve) -> None:
    served = await serve()
    long = {f"X_{i}": "x" * 1000 for i in range(20)}
    answer = await send(served.address, request(GOOD, **long))
    assert answer.status == 431
    assert (await send(served.address, request(GOOD, X_Long="x" * 15_000))).status == 200
    await assert_well(served)


async def test_half_a_head_costs_little(serve: Serve) -> None:
    """No more than its bytes: nothing is made of it before it is whole."""
    served = await serve()
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    head += b"".join(b"X-%d: %s\r\n" % (i, b"a" * 200) for i in range(60))
    async with many_connections(served, 100) as streams:
        gc.collect()
        tracemalloc.start()
        for _, writer in streams:
            writer.write(head)
        server = served.door._server
        assert server is not None
        held = [c for c in server.connections if len(c._head or b"") == len(head)]
        while len(held) < 100:
            await asyncio.sleep(0.01)
            held = [c for c in server.connections if len(c._head or b"") == len(head)]
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert grown < 100 * 20_000
        for reader, writer in streams:
            writer.write(b"\r\n")
            assert (await read_answer(reader)).status == 200


@pytest.mark.parametrize("cut", range(1, 80, 7))
async def test_a_head_in_pieces(serve: Serve, cut: int) -> None:
    served = await serve()
    whole = request(GOOD) * 2
    reader, writer = await asyncio.open_connection(*served.address)
    for at in range(0, len(whole), cut):
        writer.write(whole[at : at + cut])
        await asyncio.sleep(0)
    for _ in range(2):
        assert (await read_answer(reader)).status == 200
    await hang_up(writer)


async def test_who_does_not_read_is_cut_off(serve: Serve) -> None:
    """Its request is cancelled, and nobody else waits for it."""
    backend = ScriptedBackend(max_length=10**6, per_step=500)
    served = await serve(backend, limits=Limits(write_seconds=0.3))
    reader, writer = await asyncio.open_connection(*served.address)
    body = {
        "model": MODEL,
        "prompt": "the fox",
        "max_tokens": 900_000,
        "stream": True,
        "logprobs": 20,
    }
    writer.write(request(body))
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await until(lambda: bool(backend.cancelled))
    await assert_well(served)
    page = await send(served.address, request(path="/metrics", method="GET"))
    assert b"shuntserve_slow_clients_cut_total 1.0" in page.body
    await hang_up(writer)
    del reader


async def test_a_request_that_takes_too_long_is_ended(serve: Serve) -> None:
    backend = ScriptedBackend(interval=0.05)
    served = await serve(backend, limits=Limits(request_seconds=0.3))
    answer = await send(served.address, request(GOOD | {"max_tokens": 4000}))
    assert (answer.status, answer.error["code"]) == (408, "timeout")
    streamed = await send(served.address, request(GOOD | {"max_tokens": 4000, "stream": True}))
    assert b'"code":"timeout"' in streamed.body
    assert b"[DONE]" not in streamed.body
    assert not backend.running


async def test_a_thousand_disconnects_leave_nothing_running(serve: Serve) -> None:
    backend = ScriptedBackend(interval=0.001)
    served = await serve(backend)
    site = served.door._site
    assert site is not None
    chance = random.Random(1)

    async def leave() -> None:
        body = GOOD | {
            "max_tokens": chance.randint(1, 200),
            "stream": chance.random() < 0.7,
            "n": chance.choice([1, 1, 3]),
            "stop": chance.choice([None, "fox"]),
        }
        reader, writer = await asyncio.open_connection(*served.address)
        data = request(body)
        writer.write(data if chance.random() < 0.9 else data[: chance.randrange(len(data))])
        await asyncio.sleep(chance.random() * 0.05)
        if chance.random() < 0.5:
            writer.close()
        await hang_up(writer)
        del reader

    for _ in range(10):
        await asyncio.gather(*(leave() for _ in range(100)))
    await until(lambda: not backend.running and site.idle.is_set())
    assert not site.ends
    await assert_well(served)
    backend.submitted.clear()
    gc.collect()
    # By type, not isinstance: that asks proxies among the objects for their class.
    kinds = {Generation, Choice, Call, EventStream}
    kept = [o for o in gc.get_objects() if type(o) in kinds]
    assert kept == []
    page = (await send(served.address, request(path="/metrics", method="GET"))).body
    assert b"shuntserve_requests_in_flight 0.0" in page
    assert b"shuntserve_connections 1.0" in page


async def test_a_disconnect_reaches_the_engine_within_a_step(serve: Serve) -> None:
    backend = ScriptedBackend(interval=0.2)
    served = await serve(backend)
    reader, writer = await asyncio.open_connection(*served.address)
    writer.write(request(GOOD | {"stream": True, "max_tokens": 1000}))
    await reader.readuntil(b"data: ")
    steps = backend.steps
    writer.transport.abort()
    await until(lambda: bool(backend.cancelled))
    assert backend.steps <= steps + 1


async def test_prompts_that_fill_the_window(serve: Serve) -> None:
    served = await serve(ScriptedBackend(script=lambda _: Reply((5,), "stop")))
    for text in ("x" * 2_000_000, "🙂" * 300_000):
        answer = await send(served.address, request(GOOD | {"prompt": text}))
        assert answer.status == 400
        assert answer.error["code"] == "context_length_exceeded"
    await assert_well(served)


async def test_http_1_0_gets_a_plain_stream(serve: Serve) -> None:
    served = await serve()
    reader, writer = await asyncio.open_connection(*served.address)
    writer.write(request(GOOD | {"stream": True}).replace(b"HTTP/1.1", b"HTTP/1.0"))
    whole = await reader.read()
    assert whole.endswith(b"data: [DONE]\n\n")
    assert b"chunked" not in whole
    await hang_up(writer)


async def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    served = await serve()
    reader, writer = await asyncio.open_connection(*served.address)
    writer.write(
        request(GOOD | {"stream": True}, X_Request_Id="first")
        + request(GOOD, X_Request_Id="second")
        + request(path="/health", method="GET", X_Request_Id="third")
    )
    ids = [(await read_answer(reader)).headers["X-Request-Id"] for _ in range(3)]
    assert ids == ["first", "second", "third"]
    await hang_up(writer)
