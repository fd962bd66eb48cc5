"""The agent's HTTP interface: JSON requests with a bearer token, and a stream of events."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import cattrs
from aiohttp import WSMsgType, web

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.engine import Template, WorkerCommand
from shuntserve_core.node.agent import Agent
from shuntserve_core.tensorstore import ShardSpec

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.2
"""How often an event stream says that the agent lives."""
_AGENT = web.AppKey("agent", Agent)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(agent: Agent, token: str) -> web.Application:
    """The agent as a web application; every request must carry `Authorization: Bearer <token>`."""
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, expected):
            return web.json_response({"error": "missing or wrong token"}, status=401)
        agent.last_contact = time.monotonic()
        try:
            return await handler(request)
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)

    app = web.Application(middlewares=[guard], client_max_size=16 << 20)
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
            web.post("/v1/spot", _watch_spot),
            web.post("/v1/shutdown", _shutdown),
        ]
    )
    return app


async def _describe(request: web.Request) -> web.Response:
    return web.json_response(await request.app[_AGENT].describe())


async def _load_shard(request: web.Request) -> web.Response:
    spec = cattrs.structure(await request.json(), ShardSpec)
    report = await request.app[_AGENT].load_shard(int(request.match_info["gpu"]), spec)
    return web.json_response(report)


async def _drop_store(request: web.Request) -> web.Response:
    await request.app[_AGENT].drop_store(int(request.match_info["gpu"]))
    return web.json_response({})


async def _retain(request: web.Request) -> web.Response:
    specs = cattrs.structure(await request.json(), list[ShardSpec])
    freed = await request.app[_AGENT].retain(int(request.match_info["gpu"]), specs)
    return web.json_response({"bytes_freed": freed})


async def _start_engine(request: web.Request) -> web.Response:
    body = await request.json()
    commands = cattrs.structure(body["commands"], list[WorkerCommand])
    engine_id = request.match_info["engine_id"]
    await request.app[_AGENT].start_engine(engine_id, commands, body["launch"])
    return web.json_response({})


async def _stop_engine(request: web.Request) -> web.Response:
    grace = float(request.query.get("grace", "1.0"))
    await request.app[_AGENT].stop_engine(request.match_info["engine_id"], grace)
    return web.json_response({})


async def _prepare(request: web.Request) -> web.Response:
    template = cattrs.structure(await request.json(), Template)
    await request.app[_AGENT].prepare(template)
    return web.json_response({})


async def _free_port(request: web.Request) -> web.Response:
    body = await request.json()
    return web.json_response({"port": request.app[_AGENT].free_port(str(body["host"]))})


async def _watch_spot(request: web.Request) -> web.Response:
    body = await request.json()
    request.app[_AGENT].watch_spot(str(body["source"]), dict(body["options"]))
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


def body_of(command: WorkerCommand) -> dict[str, Any]:
    """A worker command as this interface takes it."""
    unstructured: dict[str, Any] = cattrs.unstructure(command)
    return unstructured
