"""What is inside the fields of a body is checked as the fields are, and said with its path."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shuntserve_core.testing.frontdoors import ScriptedBackend
from shuntserve_plugins.frontdoors.openai import wire
from shuntserve_plugins.frontdoors.openai.decoding import fields_at
from tests.plugins.frontdoors.conftest import MODEL, Serve
from tests.plugins.frontdoors.http import request, send

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "fox"}]}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f"}}
CALL: dict[str, Any] = {"function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("extra", "param", "nearest"),
    [
        ({"stream_options": {"include_usag": True}}, "stream_options.include_usag", "usage"),
        ({"response_format": {"type": "text", "jsonschema": {}}}, None, "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"shema": {}}}},
            "response_format.json_schema.shema",
            "schema",
        ),
        ({"tools": [TOOL | {"functions": 1}]}, "tools[0].functions", "function"),
        ({"tools": [{"function": {"name": "f", "param": {}}}]}, "tools[0].function.param", ""),
        ({"tool_choice": TOOL | {"nam": 1}}, "tool_choice.nam", "function"),
        ({"tool_choice": {"function": {"nam": "f"}}}, "tool_choice.function.nam", "name"),
        ({"messages": [{"role": "user", "contents": "x"}]}, "messages[0].contents", "content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "txt": 1}]}]},
            "messages[0].content[0].txt",
            "text",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [CALL | {"ids": "x"}]}]},
            "messages[0].tool_calls[0].ids",
            "id",
        ),
        (
            {"messages": [{"role": "a", "tool_calls": [{"function": {"name": "f", "arg": ""}}]}]},
            "messages[0].tool_calls[0].function.arg",
            "arguments",
        ),
    ],
)
async def test_an_unknown_field_is_refused_wherever_it_is(
    serve: Serve, extra: dict[str, Any], param: str | None, nearest: str
) -> None:
    served = await serve()
    answer = await send(served.address, request(CHAT | extra, "/v1/chat/completions"))
    assert answer.status == 400
    assert answer.error["code"] == "unknown_parameter"
    assert answer.error["param"] == param or param is None
    assert answer.error["param"] in answer.error["message"]
    assert nearest in answer.error["message"]
    assert not served.backend.submitted


def test_every_object_of_a_request_refuses_what_it_does_not_know() -> None:
    requests = (
        wire.ChatRequest,
        wire.CompletionRequest,
        wire.TokenizeRequest,
        wire.DetokenizeRequest,
    )
    _, components = msgspec.json.schema_components(requests)
    objects = {name: one for name, one in components.items() if "properties" in one}
    assert len(objects) > 10
    lenient = [
        name for name, one in objects.items() if one.get("additionalProperties") is not False
    ]
    assert lenient == []


def test_fields_are_found_through_lists_and_unions() -> None:
    assert fields_at(wire.ChatRequest, "messages[3].content[1]") == [
        "type",
        "text",
        "prompt_cache_breakpoint",
        "refusal",
        "thinking",
    ]
    assert fields_at(wire.ChatRequest, "tool_choice.function") == ["name"]
    assert fields_at(wire.ChatRequest, "no.such[0].path") == []


async def test_what_servers_answer_is_taken_back(serve: Serve) -> None:
    """Clients send messages of other servers back as they were."""
    answered = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [CALL | {"index": 0, "id": "a", "type": "function"}],
        "reasoning": None,
        "reasoning_content": None,
    }
    served = await serve()
    body = CHAT | {"messages": [*CHAT["messages"], answered], "max_tokens": 2}
    answer = await send(served.address, request(body, "/v1/chat/completions"))
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("logprobs", [True, False])
async def test_usage_throughout_a_stream(serve: Serve, chat: bool, logprobs: bool) -> None:
    served = await serve(ScriptedBackend(per_step=2))
    path = "/v1/chat/completions" if chat else "/v1/completions"
    body: dict[str, Any] = CHAT if chat else {"model": MODEL, "prompt": ["fox", "dog over"]}
    if logprobs:
        body = body | ({"logprobs": True} if chat else {"logprobs": 1})
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = body | {"stream": True, "max_tokens": 6, "stream_options": options}
    answer = await send(served.address, request(body, path))
    *events, done = answer.body.decode().removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    chunks = [msgspec.json.decode(event.removeprefix("data: ")) for event in events]
    last = chunks.pop()
    assert last["choices"] == []
    lengths = [len(journal.prompt) for journal in served.backend.submitted]
    finals: dict[int, int] = {}
    for chunk in chunks:
        (choice,), usage = chunk["choices"], chunk["usage"]
        assert usage["prompt_tokens"] == lengths[choice["index"]]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["completion_tokens"] >= finals.get(choice["index"], 0)
        finals[choice["index"]] = usage["completion_tokens"]
    assert finals == dict.fromkeys(range(len(lengths)), 6)
    assert last["usage"]["completion_tokens"] == sum(finals.values())
    assert last["usage"]["prompt_tokens"] == sum(lengths)


async def test_usage_throughout_needs_usage(serve: Serve) -> None:
    served = await serve()
    options = {"continuous_usage_stats": True}
    body = CHAT | {"stream": True, "max_tokens": 2, "stream_options": options}
    answer = await send(served.address, request(body, "/v1/chat/completions"))
    assert answer.status == 200
    assert b'"usage"' not in answer.body
