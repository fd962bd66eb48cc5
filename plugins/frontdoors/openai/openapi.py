"""The OpenAPI 3.1 document, made from the types that requests are validated with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from attrs import evolve, frozen

from shuntserve_core import __version__
from shuntserve_plugins.frontdoors.openai import answers, wire
from shuntserve_plugins.frontdoors.openai.errors import ErrorBody

_EVENTS = "text/event-stream"
_JSON = "application/json"
_ERRORS = {
    400: "The request is not valid",
    401: "An API key is missing or wrong",
    403: "A page of another origin or name may have sent the request",
    404: "There is no such model or path",
    405: "The path takes another method",
    408: "The request did not arrive, or was not answered, in time",
    413: "The body is too large",
    415: "The body is not JSON",
    431: "The headers are too large",
    429: "Too many requests; see the header Retry-After",
    500: "The server failed",
    503: "The cluster cannot take the request; see the header Retry-After",
}


@frozen
class Operation:
    """One path and method, in the words of the document."""

    path: str
    method: str
    name: str
    summary: str
    answer: Any
    """A type, a media type of text, or None for no body."""
    body: Any = None
    parameters: Sequence[dict[str, Any]] = ()
    chunk: Any = None
    """Type of the data of each event, where the answer can be a stream."""
    unready: Any = None
    """Type of the body of a 503, where that is no error; an empty text for no body."""
    open: bool = False
    """Whether it never needs a key."""


_MODEL_PARAMETER = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1},
}

_DESCRIBED = (
    Operation(
        "/v1/chat/completions",
        "post",
        "createChatCompletion",
        "Answer a chat",
        answers.ChatResponse,
        wire.ChatRequest,
        chunk=answers.ChatChunk,
    ),
    Operation(
        "/v1/completions",
        "post",
        "createCompletion",
        "Continue texts",
        answers.CompletionResponse,
        wire.CompletionRequest,
        chunk=answers.CompletionChunk,
    ),
    Operation("/v1/models", "get", "listModels", "The model that is served", answers.ModelList),
    Operation(
        "/v1/models/{model}",
        "get",
        "retrieveModel",
        "The model by its name",
        answers.Model,
        parameters=(_MODEL_PARAMETER,),
    ),
    Operation(
        "/tokenize",
        "post",
        "tokenize",
        "Tokens of a text or a chat",
        answers.TokenizeResponse,
        wire.TokenizeRequest,
    ),
    Operation(
        "/detokenize",
        "post",
        "detokenize",
        "Text of tokens",
        answers.DetokenizeResponse,
        wire.DetokenizeRequest,
    ),
    Operation("/health", "get", "health", "Whether the process is well", answers.Health, open=True),
    Operation(
        "/ready",
        "get",
        "ready",
        "Whether requests are welcome",
        answers.Health,
        unready=answers.Health,
        open=True,
    ),
    *(
        Operation(
            "/ping",
            method,
            f"{method}Ping",
            "Whether requests are welcome, in a status alone",
            None,
            unready="",
            open=True,
        )
        for method in ("get", "post")
    ),
    Operation("/version", "get", "version", "The version of this software", answers.Version),
    Operation("/load", "get", "load", "How much is under way", answers.Load),
    Operation("/metrics", "get", "metrics", "Metrics for Prometheus", "text/plain"),
    Operation("/openapi.json", "get", "openapi", "This document", dict[str, Any]),
)
_WITH_HEAD = ("/v1/models", "/v1/models/{model}", "/health", "/ready")
OPERATIONS = (
    *_DESCRIBED,
    *(
        evolve(
            one,
            method="head",
            name=f"{one.name}Head",
            answer=None,
            unready="" if one.unready else None,
        )
        for one in _DESCRIBED
        if one.path in _WITH_HEAD
    ),
)


def document(*, with_keys: bool) -> bytes:
    """The document as JSON; `with_keys` says that most paths need an API key."""
    types = [ErrorBody]
    for operation in OPERATIONS:
        named = (operation.answer, operation.body, operation.chunk)
        types += [t for t in named if t is not None and not isinstance(t, str)]
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    schema_of = dict(zip(map(str, types), schemas, strict=True))
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        described = _operation(operation, schema_of)
        if with_keys and not operation.open:
            described["security"] = [{"key": []}]
        paths.setdefault(operation.path, {})[operation.method] = described
    whole: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "shuntserve",
            "version": __version__,
            "description": "The OpenAI API over a cluster of pipelines.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    if with_keys:
        scheme = {"type": "http", "scheme": "bearer"}
        whole["components"]["securitySchemes"] = {"key": scheme}
    return msgspec.json.encode(whole)


def _operation(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    error = {"content": {_JSON: {"schema": schema_of[str(ErrorBody)]}}}
    told: dict[str, Any] = {} if operation.method == "head" else error
    responses = {str(status): {"description": text, **told} for status, text in _ERRORS.items()}
    responses["200"] = {"description": "Success", **_content(operation, schema_of)}
    if operation.unready is not None:
        health: dict[str, Any] = {}
        if operation.unready:
            health = {"content": {_JSON: {"schema": schema_of[str(operation.unready)]}}}
        responses["503"] = {"description": "Not ready", **health}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": dict(sorted(responses.items())),
    }
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    if operation.body is not None:
        schema = schema_of[str(operation.body)]
        described["requestBody"] = {"required": True, "content": {_JSON: {"schema": schema}}}
    return described


def _content(operation: Operation, schema_of: dict[str, Any]) -> dict[str, Any]:
    if operation.answer is None:
        return {}
    if isinstance(operation.answer, str):
        return {"content": {operation.answer: {"schema": {"type": "string"}}}}
    content: dict[str, Any] = {_JSON: {"schema": schema_of[str(operation.answer)]}}
    if operation.chunk is not None:
        shapes = [schema_of[str(operation.chunk)], schema_of[str(ErrorBody)]]
        content[_EVENTS] = {"schema": _event(shapes)}
    return {"content": content}


def _event(shapes: list[Any]) -> dict[str, Any]:
    """One server-sent event; its data is `[DONE]`, or JSON of one of `shapes` in a string."""
    told = {"contentMediaType": _JSON, "contentSchema": {"anyOf": shapes}}
    data = {"type": "string", "anyOf": [{"const": "[DONE]"}, told]}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}
