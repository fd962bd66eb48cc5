"""`response_format` and `structured_outputs` become one constraint for the engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shuntserve_core.testing.frontdoors import FEATURES, ScriptedBackend
from tests.plugins.frontdoors.conftest import MODEL, Serve
from tests.plugins.frontdoors.http import request, send

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TAG = {"type": "structural_tag", "format": {"type": "any_text"}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "fox"}]},
    "/v1/completions": {"prompt": "fox"},
}
paths = pytest.mark.parametrize("path", BODIES)


def body(path: str, **extra: Any) -> bytes:
    return request({"model": MODEL, "max_tokens": 2, **BODIES[path], **extra}, path)


@paths
@pytest.mark.parametrize(
    ("extra", "guided"),
    [
        ({"structured_outputs": {"json": SCHEMA}}, {"json_schema": SCHEMA}),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, {"json_schema": SCHEMA}),
        ({"structured_outputs": {"regex": "a+b?"}}, {"regex": "a+b?"}),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, {"choice": ["yes", "no"]}),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, {"grammar": 'root ::= "a"'}),
        ({"structured_outputs": {"json_object": True}}, {"json_object": True}),
        (
            {"structured_outputs": {"structural_tag": json.dumps(TAG)}},
            {"structural_tag": json.dumps(TAG)},
        ),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            {"json_schema": SCHEMA},
        ),
        (
            {"response_format": TAG},
            {"structural_tag": json.dumps(TAG, separators=(",", ":"))},
        ),
        ({"response_format": {"type": "text"}}, None),
        (
            {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}},
            {"regex": "a"},
        ),
        ({"structured_outputs": None, "response_format": None}, None),
    ],
)
async def test_what_engines_are_told(
    serve: Serve, path: str, extra: dict[str, Any], guided: Any
) -> None:
    served = await serve()
    answer = await send(served.address, body(path, **extra))
    assert answer.status == 200, answer.body
    assert served.backend.submitted[0].sampling.guided == guided


@paths
@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs.regexp"),
        ({"structured_outputs": {"regex": 1}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": "yes"}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", "a"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a"] * 2000}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": '{"a":' * 900}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": {"a": [[]] * 9}, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
        ({"response_format": {"type": "structural_tag"}}, "response_format.format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
async def test_what_is_no_constraint(
    serve: Serve, path: str, extra: dict[str, Any], param: str
) -> None:
    served = await serve()
    answer = await send(served.address, body(path, **extra))
    assert answer.status == 400
    named = answer.error["param"].removesuffix("[...]")
    assert named == param
    assert not served.backend.submitted


@paths
@pytest.mark.parametrize("wanted", [{"regex": "a"}, {"choice": ["a"]}, {"json": {}}])
async def test_an_engine_that_cannot_constrain_is_told_of(
    serve: Serve, path: str, wanted: dict[str, Any]
) -> None:
    served = await serve(ScriptedBackend(features=FEATURES - {"guided"}))
    answer = await send(served.address, body(path, structured_outputs=wanted))
    assert answer.status == 400
    assert "no guided" in answer.error["message"]
    assert "structured_outputs" in answer.error["message"]


async def test_a_forced_tool_is_a_constraint_of_its_own(serve: Serve) -> None:
    served = await serve()
    tools = [{"type": "function", "function": {"name": "f"}}]
    extra = {"tools": tools, "tool_choice": "required", "structured_outputs": {"regex": "a"}}
    answer = await send(served.address, body("/v1/chat/completions", **extra))
    assert (answer.status, answer.error["param"]) == (400, "structured_outputs")
