"""Everything beside generation: models, tokens, health, metrics, the API's description."""

from __future__ import annotations

from urllib.parse import unquote

import msgspec
from aiohttp import web

from shuntserve_core import __version__
from shuntserve_plugins.frontdoors.openai import metrics
from shuntserve_plugins.frontdoors.openai.answers import Health, Load, Model, ModelList, Version
from shuntserve_plugins.frontdoors.openai.context import Call
from shuntserve_plugins.frontdoors.openai.prompts import check_model
from shuntserve_plugins.frontdoors.openai.reading import Reading

MODEL_PATH = "/v1/models/"


def json_response(value: object, status: int = 200) -> web.Response:
    """A response from one of the wire types."""
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, content_type="application/json")


async def models(call: Call) -> web.StreamResponse:
    """The one model that is served."""
    return json_response(ModelList([_model(call)]))


async def model(call: Call) -> web.StreamResponse:
    """That model by its name."""
    check_model(unquote(call.request.path[len(MODEL_PATH) :]), call.site.model)
    return json_response(_model(call))


def _model(call: Call) -> Model:
    site = call.site
    return Model(site.model, site.created, site.backend.max_length)


async def tokenize(call: Call) -> web.StreamResponse:
    """The tokens of a text, or of a chat as its template renders it."""
    return _ready_made(await call.read("tokenize"))


async def detokenize(call: Call) -> web.StreamResponse:
    """The text of tokens, special ones included."""
    return _ready_made(await call.read("detokenize"))


def _ready_made(reading: Reading) -> web.Response:
    return web.Response(body=reading.answer, content_type="application/json")


async def health(call: Call) -> web.StreamResponse:
    """The process is well, whether or not it may be sent requests."""
    return json_response(Health("ok"))


async def ready(call: Call) -> web.StreamResponse:
    """Requests are welcome: some pipeline serves, and the server is not going away."""
    if call.site.draining:
        return json_response(Health("draining"), 503)
    if not call.site.backend.ready:
        return json_response(Health("starting"), 503)
    return json_response(Health("ok"))


async def ping(call: Call) -> web.StreamResponse:
    """As `ready`, in a status alone: what Amazon SageMaker and vLLM's users ask for."""
    site = call.site
    return web.Response(status=200 if site.backend.ready and not site.draining else 503)


async def version(call: Call) -> web.StreamResponse:
    """The version of this software, as vLLM tells its own."""
    return json_response(Version(__version__))


async def load(call: Call) -> web.StreamResponse:
    """Generations under way, under vLLM's name."""
    return json_response(Load(call.site.busy))


async def metrics_page(call: Call) -> web.StreamResponse:
    """Metrics for Prometheus."""
    page = call.site.metrics.page()
    return web.Response(body=page, headers={"Content-Type": metrics.CONTENT_TYPE})


async def openapi(call: Call) -> web.StreamResponse:
    """The description of this API."""
    return web.Response(body=call.site.document, content_type="application/json")
