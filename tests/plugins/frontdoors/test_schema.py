"""The OpenAPI document is true: generated requests meet no 5xx and no undocumented shape."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from shuntserve_core.testing.frontdoors import ScriptedBackend
from shuntserve_plugins.frontdoors.openai.answers import ChatChunk, CompletionChunk
from shuntserve_plugins.frontdoors.openai.application import ROUTES
from shuntserve_plugins.frontdoors.openai.door import OpenAIFrontDoor
from shuntserve_plugins.frontdoors.openai.openapi import OPERATIONS, document
from tests.plugins.frontdoors.conftest import MODEL, Serve
from tests.plugins.frontdoors.http import request, send

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A front door on a thread of its own, since schemathesis waits for its answers."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    door = OpenAIFrontDoor(port=0)
    started = door.start(ScriptedBackend(per_step=64, max_length=256), str(folder), MODEL)
    yield asyncio.run_coroutine_threadsafe(started, loop).result()
    asyncio.run_coroutine_threadsafe(door.drain(1.0), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def operations() -> list[tuple[str, str]]:
    return [(operation.path, operation.method) for operation in OPERATIONS]


def described(url: str) -> Any:
    """What the document says of the front door at `url`, for schemathesis."""
    whole = json.loads(document(with_keys=False))
    # Only the model that is served gets past the first check.
    for body in whole["components"]["schemas"].values():
        if "model" in body.get("properties", {}) and body["title"].endswith("Request"):
            body["properties"]["model"] = {"enum": [MODEL]}
    api = schemathesis.openapi.from_dict(whole)
    api.config.update(base_url=url)
    return api


@pytest.mark.parametrize(("path", "method"), operations())
def test_no_server_error_and_no_undocumented_shape(url: str, path: str, method: str) -> None:
    operation = described(url)[path][method]
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
    cases = st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes])

    @given(case=cases)
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    def answers(case: schemathesis.Case) -> None:
        response = case.call()
        met.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    met: set[int] = set()
    answers()
    assert (404 if "{model}" in path else 200) in met


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "fox"}]}),
        ("/v1/completions", {"prompt": "fox"}),
    ],
)
def test_a_whole_stream_is_as_the_document_says(url: str, path: str, body: dict[str, Any]) -> None:
    case = described(url)[path]["post"].Case(
        body={"model": MODEL, "stream": True, "max_tokens": 3, **body},
        media_type="application/json",
    )
    response = case.call()
    assert response.content.endswith(b"data: [DONE]\n\n")
    case.validate_response(response, checks=CHECKS)


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize(
    ("path", "chunk", "body"),
    [
        ("/v1/chat/completions", ChatChunk, {"messages": [{"role": "user", "content": "fox"}]}),
        (
            "/v1/chat/completions",
            ChatChunk,
            {"messages": [{"role": "user", "content": "fox"}], "logprobs": True, "top_logprobs": 2},
        ),
        (
            "/v1/chat/completions",
            ChatChunk,
            {
                "messages": [{"role": "user", "content": "fox"}],
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": "required",
            },
        ),
        ("/v1/completions", CompletionChunk, {"prompt": ["fox", "dog"], "echo": True}),
        ("/v1/completions", CompletionChunk, {"prompt": "fox", "logprobs": 2, "n": 2}),
    ],
)
async def test_every_event_is_as_described(
    serve: Serve, usage: bool, path: str, chunk: type, body: dict[str, Any]
) -> None:
    served = await serve()
    extra = {"model": MODEL, "stream": True, "max_tokens": 5}
    options = {"stream_options": {"include_usage": usage}}
    answer = await send(served.address, request({**body, **extra, **options}, path))
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = answer.body.decode().removesuffix("\n\n").split("\n\n")
    assert events.pop() == "data: [DONE]"
    chunks = [msgspec.json.decode(event.removeprefix("data: "), type=chunk) for event in events]
    assert (chunks[-1].usage is not None) == usage
    assert all(c.usage is None for c in chunks[:-1])


def test_every_route_is_described_and_the_other_way_round() -> None:
    described = {(operation.path, operation.method.upper()) for operation in OPERATIONS}
    assert described == {(route.path, method) for route in ROUTES for method in route.methods}


def test_what_needs_a_key_says_so() -> None:
    paths = json.loads(document(with_keys=True))["paths"]
    needing = {path for path, item in paths.items() for op in item.values() if "security" in op}
    assert needing == {route.path for route in ROUTES if not route.open}
