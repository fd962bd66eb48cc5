"""One rule for every parameter: carried out, let through for a reason, or refused with one."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect
from openai.types import chat as sdk_chat
from openai.types import completion_create_params as sdk_completions
from openai.types.chat import completion_create_params as sdk_chats

from shuntserve_core.testing.frontdoors import Reply, ScriptedBackend
from shuntserve_core.text import TextTokenizer
from shuntserve_plugins.frontdoors.openai import wire
from shuntserve_plugins.frontdoors.openai.decoding import decode
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.parameters import ABSENT, ELSEWHERE, TABLES, Ruling
from shuntserve_plugins.frontdoors.openai.reading import BODIES
from tests.plugins.frontdoors.conftest import MODEL, Serve
from tests.plugins.frontdoors.http import Answer, request, send

PATHS = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}
LEAST: Mapping[str, dict[str, Any]] = {
    "chat": {"model": MODEL, "messages": [{"role": "user", "content": "fox"}], "max_tokens": 2},
    "completion": {"model": MODEL, "prompt": "fox", "max_tokens": 2},
    "tokenize": {"model": MODEL, "prompt": "fox"},
    "detokenize": {"model": MODEL, "tokens": [40]},
}
CLIENT = {
    "chat": (
        sdk_chats.CompletionCreateParamsNonStreaming,
        sdk_chats.CompletionCreateParamsStreaming,
    ),
    "completion": (
        sdk_completions.CompletionCreateParamsNonStreaming,
        sdk_completions.CompletionCreateParamsStreaming,
    ),
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def of_client(kind: str) -> list[str]:
    """Every parameter that OpenAI's own client, as installed here, can send."""
    hints = [typing.get_type_hints(one) for one in CLIENT[kind]]
    return sorted({name for one in hints for name in one})


def optional(kind: str) -> list[str]:
    fields = msgspec.structs.fields(BODIES[kind])
    return [field.name for field in fields if not field.required]


async def ask(serve: Serve, kind: str, **extra: Any) -> Answer:
    served = await serve()
    return await send(served.address, request(LEAST[kind] | extra, PATHS[kind]))


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in CLIENT for name in of_client(kind)]
)
def test_every_parameter_of_the_official_client_has_a_row(kind: str, name: str) -> None:
    assert name in TABLES[kind], f"say in parameters.py what becomes of {name}"
    assert TABLES[kind][name].openai


@pytest.mark.parametrize("kind", BODIES)
def test_the_table_has_what_bodies_have(kind: str) -> None:
    assert set(TABLES[kind]) == {field.name for field in msgspec.structs.fields(BODIES[kind])}
    for row in TABLES[kind].values():
        assert (row.because == "") == (row.ruling is Ruling.CARRIED_OUT), row
    assert not ABSENT & {name for table in TABLES.values() for name in table}
    assert not (ABSENT | TABLES[kind].keys()) & ELSEWHERE.keys()


@pytest.mark.parametrize("kind", CLIENT)
def test_whatever_is_not_openais_is_marked(kind: str) -> None:
    ours = {name for name, row in TABLES[kind].items() if row.openai}
    # Servers of the API take the shape of an answer, and limits, at both endpoints.
    assert ours == set(of_client(kind))


def test_messages_have_every_field_of_the_official_client() -> None:
    known = {field.name for field in msgspec.structs.fields(wire.Message)}
    for message in typing.get_args(sdk_chat.ChatCompletionMessageParam):
        assert set(typing.get_type_hints(message)) <= known, message
    parts = {field.name for field in msgspec.structs.fields(wire.TextPart)} | {"type"}
    assert set(typing.get_type_hints(sdk_chat.ChatCompletionContentPartTextParam)) <= parts


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in BODIES for name in optional(kind)]
)
async def test_null_is_the_same_as_leaving_it_out(serve: Serve, kind: str, name: str) -> None:
    plain = {"temperature": 0, "seed": 1} if kind in CLIENT else {}
    if kind == "tokenize" and name == "prompt":
        plain["messages"] = LEAST["chat"]["messages"]
    answer = await ask(serve, kind, **plain | {name: None})
    assert answer.status == 200, answer.body


def structs(wanted: type[Any]) -> dict[type[Any], inspect.StructType]:
    """Every object that may be in a body."""
    found: dict[type[Any], inspect.StructType] = {}
    pending: list[inspect.Type] = [inspect.type_info(wanted)]
    while pending:
        one = pending.pop()
        if isinstance(one, inspect.UnionType):
            pending += one.types
        elif isinstance(one, inspect.ListType):
            pending.append(one.item_type)
        elif isinstance(one, inspect.StructType) and one.cls not in found:
            found[one.cls] = one
            pending += [field.type for field in one.fields]
    return found


@pytest.mark.parametrize("kind", BODIES)
def test_every_optional_field_of_every_object_takes_null(kind: str) -> None:
    for cls, struct in structs(BODIES[kind]).items():
        for field in struct.fields:
            kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
            lenient = any(isinstance(one, inspect.NoneType | inspect.AnyType) for one in kinds)
            assert field.required or lenient, f"{cls.__name__}.{field.name}"


@pytest.mark.parametrize(
    "body",
    [
        {"temprature": None, "top_a": None},
        {"messages": [{"role": "user", "content": "fox", "cache_control": None}]},
        {"stream_options": {"x": None}},
        {"tools": [TOOL | {"note": None}], "tool_choice": "none"},
    ],
)
async def test_unknown_fields_that_are_null_ask_for_nothing(
    serve: Serve, body: dict[str, Any]
) -> None:
    assert (await ask(serve, "chat", **body)).status == 200


async def test_an_unknown_field_beside_a_null_one_is_the_one_that_is_named(serve: Serve) -> None:
    answer = await ask(serve, "chat", x=None, messages=[{"role": "user", "y": 1}])
    assert (answer.status, answer.error["param"]) == (400, "messages[0].y")
    answer = await ask(serve, "chat", **{f"x{number}": None for number in range(40)})
    assert answer.error["code"] == "unknown_parameter"


LET_THROUGH: tuple[tuple[str, dict[str, Any]], ...] = (
    ("chat", {"user": "u", "safety_identifier": "s", "store": True, "metadata": {"a": "b"}}),
    ("chat", {"service_tier": "priority", "prompt_cache_key": "k"}),
    ("chat", {"prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "explicit"}}),
    ("chat", {"prediction": {"type": "content", "content": "fox"}}),
    ("chat", {"modalities": ["text"], "verbosity": "medium", "audio": None}),
    ("chat", {"functions": [], "function_call": "auto"}),
    ("chat", {"parallel_tool_calls": False, "response_format": {"type": "text"}}),
    ("chat", {"tools": [TOOL], "tool_choice": "none"}),
    ("chat", {"tools": [], "tool_choice": "auto"}),
    ("chat", {"stream_options": {"include_usage": True, "include_obfuscation": False}}),
    ("chat", {"logit_bias": {"40": 1}}),
    ("completion", {"suffix": "", "best_of": 1, "user": "u", "logit_bias": {}}),
    ("tokenize", {"prompt": None, "messages": LEAST["chat"]["messages"], "tools": [TOOL]}),
)


@pytest.mark.parametrize(("kind", "extra"), LET_THROUGH)
async def test_what_asks_for_no_other_answer_is_let_through(
    serve: Serve, kind: str, extra: dict[str, Any]
) -> None:
    answer = await ask(serve, kind, **extra)
    assert answer.status == 200, answer.body


REFUSED: tuple[tuple[str, dict[str, Any], str, str], ...] = (
    ("chat", {"audio": {"voice": "alloy", "format": "wav"}}, "audio", "leave out audio"),
    ("chat", {"modalities": ["text", "audio"]}, "modalities[1]", "ask for text alone"),
    ("chat", {"modalities": []}, "modalities", "['text']"),
    ("chat", {"web_search_options": {}}, "web_search_options", "searches the web"),
    ("chat", {"moderation": {"model": "m"}}, "moderation", "judges"),
    ("chat", {"functions": [{"name": "f"}]}, "functions", "send tools"),
    ("chat", {"function_call": {"name": "f"}}, "function_call", "tool_choice"),
    ("chat", {"reasoning_effort": "low"}, "reasoning_effort", "no such setting"),
    ("chat", {"reasoning_effort": "none"}, "reasoning_effort", "no such setting"),
    ("chat", {"verbosity": "high"}, "verbosity", "in a message"),
    ("chat", {"tools": [TOOL]}, "tools", "tool_choice 'none'"),
    ("chat", {"tools": [TOOL], "tool_choice": "auto"}, "tool_choice", "tool_choice 'none'"),
    ("chat", {"tools": [TOOL, TOOL], "tool_choice": "required"}, "tool_choice", "name one"),
    (
        "chat",
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "padded",
    ),
    ("completion", {"suffix": "end"}, "suffix", "leave out suffix"),
    ("completion", {"best_of": 3}, "best_of", "must equal n"),
    (
        "chat",
        {"chat_template_kwargs": {"enable_thinkin": True}},
        "chat_template_kwargs.enable_thinkin",
        "does not read it",
    ),
    ("chat", {"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools", "beside"),
    ("chat", {"documents": [{"text": "x"}]}, "documents", "into a message"),
    (
        "tokenize",
        {"prompt": None, "messages": [{"role": "user"}], "documents": [{"text": "x"}]},
        "documents",
        "into a message",
    ),
    (
        "tokenize",
        {"prompt": None, "messages": [{"role": "user"}], "chat_template_kwargs": {"x": 1}},
        "chat_template_kwargs.x",
        "does not read it",
    ),
)


@pytest.mark.parametrize(("kind", "extra", "param", "words"), REFUSED)
async def test_what_would_be_another_answer_is_refused(
    serve: Serve, kind: str, extra: dict[str, Any], param: str, words: str
) -> None:
    answer = await ask(serve, kind, **extra)
    assert (answer.status, answer.error["param"]) == (400, param), answer.body
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["code"] == "unsupported_parameter"
    assert answer.error["message"].startswith(f"{param} is not supported: ")
    assert words in answer.error["message"]


def test_every_refusal_of_the_table_is_tried() -> None:
    limited = {
        (kind, name)
        for kind, table in TABLES.items()
        for name, row in table.items()
        if row.ruling in (Ruling.REFUSED, Ruling.IN_PART)
    }
    tried = {(kind, param.split(".")[0].split("[")[0]) for kind, _, param, _ in REFUSED}
    assert limited - tried == {("completion", "stream_options")}, "common to both endpoints"


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("chat", "maxTokens", "did you mean 'max_tokens'?"),
        ("chat", "top-p", "did you mean 'top_p'?"),
        ("chat", "frequency_penality", "did you mean 'frequency_penalty'?"),
        ("chat", "max_new_tokens", "here it is called 'max_tokens'"),
        ("chat", "guided_json", "here it is called 'structured_outputs.json'"),
        ("chat", "echo", "it is a parameter of /v1/completions alone"),
        ("completion", "tools", "it is a parameter of /v1/chat/completions and /tokenize alone"),
        ("chat", "bad_words", "nothing here does what it does elsewhere"),
        ("tokenize", "temperature", "/v1/chat/completions and /v1/completions alone"),
    ],
)
async def test_hints_lead_to_what_was_meant(serve: Serve, kind: str, name: str, words: str) -> None:
    answer = await ask(serve, kind, **{name: 1})
    assert answer.error["code"] == "unknown_parameter"
    assert answer.error["param"] == name
    assert words in answer.error["message"]


@pytest.mark.parametrize("kind", CLIENT)
@pytest.mark.parametrize(
    "name",
    ["top_a", "typical_p", "min_length", "logits", "penalty", "stop_ids", "audios", "thinking"],
)
def test_hints_do_not_lead_to_anything_else(kind: str, name: str) -> None:
    body = json.dumps(LEAST[kind] | {name: 1}).encode()
    with pytest.raises(ApiError) as caught:
        decode(kind, msgspec.json.Decoder(BODIES[kind]), body)
    assert "did you mean" not in caught.value.message
    assert "called" not in caught.value.message


@pytest.mark.parametrize(
    ("kind", "extra", "param"),
    [
        ("chat", {"max_tokens": None, "max_completion_tokens": 5000}, "max_completion_tokens"),
        ("chat", {"max_tokens": 5000}, "max_tokens"),
        ("completion", {"max_tokens": 5000}, "max_tokens"),
        ("completion", {"prompt": [40] * 4090, "max_tokens": None}, "prompt"),
        ("completion", {"prompt": ["fox"] * 200}, "prompt"),
        ("completion", {"prompt": ["fox"] * 100, "n": 2}, "n"),
        ("chat", {"tools": [TOOL], "tool_choice": {"function": {"name": "g"}}},
         "tool_choice.function.name"),
        ("chat", {"tool_choice": "required"}, "tool_choice"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content[0].type"),
        ("chat", {"tools": [TOOL | {"type": "custom"}]}, "tools[0].type"),
        ("chat", {"reasoning_effort": "hgih"}, "reasoning_effort"),
        ("chat", {"temperature": "hot"}, "temperature"),
        ("chat", {"stop": [""]}, "stop[0]"),
    ],
)  # fmt: skip
async def test_param_names_what_was_sent(
    serve: Serve, kind: str, extra: dict[str, Any], param: str
) -> None:
    answer = await ask(serve, kind, **extra)
    assert (answer.status, answer.error["param"]) == (400, param), answer.body


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"properties": schema}
    return schema


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        (
            {
                "tools": [TOOL, {"function": {"name": "deep", "parameters": nested(70)}}],
                "tool_choice": {"function": {"name": "deep"}},
            },
            "tools[1].function.parameters",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": nested(70)}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
async def test_schemas_are_named_by_their_path(
    serve: Serve, extra: dict[str, Any], param: str
) -> None:
    answer = await ask(serve, "chat", **extra)
    assert (answer.status, answer.error["param"]) == (400, param), answer.body


TEMPLATE = """{% if not mood is defined %}{% set mood = "calm" %}{% endif -%}
{% for message in messages %}{{ message.content }} {% endfor -%}
{{ mood }} {{ reasoning_effort | default("unset") }} {{ verbosity }}"""


@pytest.mark.parametrize(
    ("extra", "prompt"),
    [
        ({}, "fox calm unset "),
        ({"reasoning_effort": "high"}, "fox calm high "),
        ({"verbosity": "low"}, "fox calm unset low"),
        ({"verbosity": "medium"}, "fox calm unset medium"),
        ({"chat_template_kwargs": {"mood": "wild"}}, "fox wild unset "),
        (
            {"reasoning_effort": "high", "chat_template_kwargs": {"reasoning_effort": "own"}},
            "fox calm own ",
        ),
    ],
)
async def test_templates_get_the_settings_that_they_read(
    serve: Serve, tokenizer: TextTokenizer, tmp_path: Path, extra: dict[str, Any], prompt: str
) -> None:
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    served = await serve(chat_template=str(tmp_path / "template.jinja"))
    answer = await send(served.address, request(LEAST["chat"] | extra, PATHS["chat"]))
    assert answer.status == 200, answer.body
    assert tokenizer.decode(served.backend.submitted[0].prompt) == prompt
    refused = await send(
        served.address,
        request(LEAST["chat"] | {"chat_template_kwargs": {"moods": 1}}, PATHS["chat"]),
    )
    assert "it reads mood, reasoning_effort, verbosity." in refused.error["message"]


@pytest.mark.parametrize(
    ("kind", "extra", "param"),
    [
        ("chat", {"response_format": {"type": "json_object"}}, "response_format"),
        ("completion", {"structured_outputs": {"regex": "(("}}, "structured_outputs"),
        ("chat", {"tools": [TOOL], "tool_choice": "required"}, "tools"),
        ("chat", {}, None),
    ],
)
async def test_what_an_engine_cannot_compile_is_named(
    serve: Serve, kind: str, extra: dict[str, Any], param: str | None
) -> None:
    reply = Reply(finish="error", error="no such thing", status=400)
    served = await serve(ScriptedBackend(script=lambda _: reply))
    answer = await send(served.address, request(LEAST[kind] | extra, PATHS[kind]))
    assert (answer.status, answer.error["param"]) == (400, param)
    assert "no such thing" in answer.error["message"]
