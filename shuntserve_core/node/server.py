"""The agent's HTTP interface: JSON requests with a bearer token, and a stream of events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from typing import Any

import cattrs
from aiohttp import WSMsgType, web
from attrs import frozen

from shuntserve_core.api import (
    body_of,
    checked_host,
    checked_module,
    checked_name,
    guarded,
    number_in,
)
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.engine import Template, WorkerCommand
from shuntserve_core.node.agent import Agent
from shuntserve_core.node.watching import SpotWatch
from shuntserve_core.tensorstore import ShardSpec
from shuntserve_core.weights.layout import parse_model_name

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.2
"""How often an event stream says that the agent lives."""
_AGENT = web.AppKey("agent", Agent)


def make_app(agent: Agent, token: str) -> web.Application:
    """The agent as a web application; every request must carry `Authorization: Bearer <token>`."""

    def contact() -> None:
        agent.last_contact = time.monotonic()

    app = web.Application(middlewares=[guarded(token, contact)], client_max_size=16 << 20)
    app[_AGENT] = agent
    app.add_routes(
        [
            web.get("/v1/node", _describe),
            web.get("/v1/events", _events),
            web.put("/v1/stores/{gpu}", _load_shard),
            web.delete("/v1/stores/{gpu}", _drop_store),
            web.post("/v1/stores/{gpu}/retain", _retain),
            web.post("/v1/engines/{engine_id}", _start_engine),
            web.delete("/v1/engines/{engine_id}", _stop_engine),
            web.post("/v1/templates", _prepare),
            web.post("/v1/ports", _free_port),
            web.put("/v1/spot", _watch_spot),
            web.put("/v1/plugins", _set_plugins),
            web.post("/v1/shutdown", _shutdown),
        ]
    )
    return app


async def _describe(request: web.Request) -> web.Response:
    return web.json_response(await request.app[_AGENT].describe())


def _gpu(request: web.Request) -> int:
    return int(number_in(request.match_info["gpu"], "the GPU", 0, 1024))


def _engine_id(request: web.Request) -> str:
    return checked_name(request.match_info["engine_id"], "an engine")


async def _load_shard(request: web.Request) -> web.Response:
    spec = _checked(await body_of(request, ShardSpec))
    return web.json_response(await request.app[_AGENT].load_shard(_gpu(request), spec))


async def _drop_store(request: web.Request) -> web.Response:
    await request.app[_AGENT].drop_store(_gpu(request))
    return web.json_response({})


async def _retain(request: web.Request) -> web.Response:
    specs = [_checked(spec) for spec in await body_of(request, list[ShardSpec])]
    freed = await request.app[_AGENT].retain(_gpu(request), specs)
    return web.json_response({"bytes_freed": freed})


def _checked(spec: ShardSpec) -> ShardSpec:
    parse_model_name(spec.model, where="body: model")
    return spec


@frozen
class _Start:
    """Body of a start."""

    commands: list[WorkerCommand]
    launch: dict[str, Any]


async def _start_engine(request: web.Request) -> web.Response:
    engine_id, body = _engine_id(request), await body_of(request, _Start)
    for command in body.commands:
        if command.template is not None:
            checked_module(command.template.module)
    await request.app[_AGENT].start_engine(engine_id, body.commands, body.launch)
    return web.json_response({})


async def _stop_engine(request: web.Request) -> web.Response:
    grace = number_in(request.query.get("grace", "1.0"), "grace", 0, 3600)
    await request.app[_AGENT].stop_engine(_engine_id(request), grace)
    return web.json_response({})


async def _prepare(request: web.Request) -> web.Response:
    template = await body_of(request, Template)
    checked_module(template.module)
    await request.app[_AGENT].prepare(template)
    return web.json_response({})


@frozen
class _Port:
    """Body of a question for a free port."""

    host: str


async def _free_port(request: web.Request) -> web.Response:
    host = checked_host((await body_of(request, _Port)).host)
    try:  # in a thread, for a name is looked up
        port = await asyncio.to_thread(request.app[_AGENT].free_port, host)
    except OSError as error:
        raise UserError(f"cannot listen on {host}: {error.strerror}") from error
    return web.json_response({"port": port})


async def _watch_spot(request: web.Request) -> web.Response:
    request.app[_AGENT].watch_spot(await body_of(request, list[SpotWatch]))
    return web.json_response({})


@frozen
class _Plugins:
    """Body of a word on plugins."""

    disabled: list[str]


async def _set_plugins(request: web.Request) -> web.Response:
    request.app[_AGENT].disable_plugins((await body_of(request, _Plugins)).disabled)
    return web.json_response({})


async def _shutdown(request: web.Request) -> web.Response:
    request.app[_AGENT].stopped.set()
    return web.json_response({})


async def _events(request: web.Request) -> web.WebSocketResponse:
    """Every event as one JSON text frame, and an empty object as a sign of life in between."""
    agent = request.app[_AGENT]
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    queue = agent.subscribe()
    reader = asyncio.create_task(_until_closed(socket))
    try:
        while not reader.done() and not agent.stopped.is_set():
            agent.last_contact = time.monotonic()
            try:
                event = await asyncio.wait_for(queue.get(), TICK_SECONDS)
            except TimeoutError:
                event = {}
            with contextlib.suppress(ConnectionError):
                await socket.send_str(json.dumps(event))
    finally:
        agent.unsubscribe(queue)
        reader.cancel()
    return socket


async def _until_closed(socket: web.WebSocketResponse) -> None:
    async for message in socket:
        if message.type in (WSMsgType.CLOSE, WSMsgType.ERROR):
            return


def unstructured(command: WorkerCommand) -> dict[str, Any]:
    """A worker command as this interface takes it."""
    body: dict[str, Any] = cattrs.unstructure(command)
    return body
