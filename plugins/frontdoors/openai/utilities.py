"""Everything beside generation: models, tokens, health, metrics, the API's description."""

from __future__ import annotations

from urllib.parse import unquote

import msgspec
from aiohttp import web

from shuntserve_core import __version__
from shuntserve_plugins.frontdoors.openai import metrics
from shuntserve_plugins.frontdoors.openai.answers import (
    DetokenizeResponse,
    Health,
    Load,
    Model,
    ModelList,
    TokenizeResponse,
    Version,
)
from shuntserve_plugins.frontdoors.openai.context import Call
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.prompts import chat_prompt, encode
from shuntserve_plugins.frontdoors.openai.wire import DetokenizeRequest, TokenizeRequest

MODEL_PATH = "/v1/models/"
_tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
_detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)


def json_response(value: object, status: int = 200) -> web.Response:
    """A response from one of the wire types."""
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, content_type="application/json")


async def models(call: Call) -> web.StreamResponse:
    """The one model that is served."""
    return json_response(ModelList([_model(call)]))


async def model(call: Call) -> web.StreamResponse:
    """That model by its name."""
    call.check_model(unquote(call.request.path[len(MODEL_PATH) :]))
    return json_response(_model(call))


def _model(call: Call) -> Model:
    site = call.site
    return Model(site.model, site.created, site.backend.max_length)


async def tokenize(call: Call) -> web.StreamResponse:
    """The tokens of a text, or of a chat as its template renders it."""
    body = await call.body(_tokenize_decoder)
    call.check_model(body.model)
    tokenizer = call.site.tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "Give one of prompt and messages.", param="prompt")
    if body.messages is not None:
        tokens = await chat_prompt(
            tokenizer,
            body.messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
        )
    else:
        special = body.add_special_tokens is not False
        tokens = await encode(tokenizer, body.prompt or "", special=special)
    strings = [tokenizer.token_text(t) for t in tokens] if body.return_token_strs else None
    length = call.site.backend.max_length
    return json_response(TokenizeResponse(len(tokens), length, tokens, strings))


async def detokenize(call: Call) -> web.StreamResponse:
    """The text of tokens, special ones included."""
    body = await call.body(_detokenize_decoder)
    call.check_model(body.model)
    tokenizer = call.site.tokenizer
    if body.tokens and max(body.tokens) >= tokenizer.vocab_size:
        last = tokenizer.vocab_size - 1
        raise ApiError(400, f"Token ids go from 0 to {last}.", param="tokens")
    text = tokenizer.decode(body.tokens, skip_special_tokens=False)
    return json_response(DetokenizeResponse(text))


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
