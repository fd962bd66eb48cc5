"""From an HTTP request to its endpoint, and from whatever happens there to a response."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from attrs import define, frozen

from shuntserve_plugins.frontdoors.openai import browsers, utilities
from shuntserve_plugins.frontdoors.openai.chat import chat_completions
from shuntserve_plugins.frontdoors.openai.completions import completions
from shuntserve_plugins.frontdoors.openai.context import Call, Site
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.keys import KeyRing
from shuntserve_plugins.frontdoors.openai.logs import ACCESS, Entry

Handler = Callable[[Call], Awaitable[web.StreamResponse]]

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_access = logging.getLogger(ACCESS)
_errors = logging.getLogger("shuntserve.frontdoor")


@frozen
class Route:
    """An endpoint; `open` ones need no key."""

    path: str
    methods: tuple[str, ...]
    handler: Handler
    open: bool = False


_GET, _POST, _READ = ("GET",), ("POST",), ("GET", "HEAD")
ROUTES = (
    Route("/v1/chat/completions", _POST, chat_completions),
    Route("/v1/completions", _POST, completions),
    Route("/v1/models", _READ, utilities.models),
    Route("/v1/models/{model}", _READ, utilities.model),
    Route("/tokenize", _POST, utilities.tokenize),
    Route("/detokenize", _POST, utilities.detokenize),
    Route("/health", _READ, utilities.health, open=True),
    Route("/ready", _READ, utilities.ready, open=True),
    Route("/ping", ("GET", "POST"), utilities.ping, open=True),
    Route("/version", _GET, utilities.version),
    Route("/load", _GET, utilities.load),
    Route("/metrics", _GET, utilities.metrics_page),
    Route("/openapi.json", _GET, utilities.openapi),
)
_COUNTS = ("/metrics", "/load")
"""Paths that show numbers alone, which `open_metrics` opens."""
_BY_PATH: Mapping[str, Route] = {route.path: route for route in ROUTES}


@define(eq=False)
class Application:
    """Handles every request of a front door."""

    site: Site
    keys: KeyRing
    open_metrics: bool = False
    cors_origins: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    """Names of this server, for clients without keys."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request; errors have one shape, whatever they are."""
        call = self._call(request)
        status, endpoint = 499, "unknown"
        try:
            route = _BY_PATH.get(request.path) or _with_parameter(request.path)
            endpoint = route.path if route else "unknown"
            response = await self._answer(call, route)
            status = response.status
        except asyncio.CancelledError:
            self.site.metrics.disconnects.inc()
            raise
        finally:
            self.site.metrics.answered(endpoint, status)
            if _access.isEnabledFor(logging.INFO):
                _access.info("%s", self._entry(call, endpoint, status))
        return response

    def _call(self, request: web.BaseRequest) -> Call:
        own = self.site.new_id()
        theirs = request.headers.get("X-Request-Id")
        usable = theirs is not None and _REQUEST_ID.fullmatch(theirs) is not None
        now = time.perf_counter()
        call = Call(self.site, request, own, theirs if theirs and usable else own, now)
        if self.cors_origins:
            call.cors = browsers.cors(request, self.cors_origins)
        return call

    async def _answer(self, call: Call, route: Route | None) -> web.StreamResponse:
        try:
            if call.cors and call.request.method == "OPTIONS":
                response: web.StreamResponse = browsers.preflight(call.request)
            else:
                response = await self._dispatch(call, route)
        except ApiError as error:
            error.__traceback__ = None  # has frames that have the error: a cycle
            response = error_response(error)
            call.log.setdefault("error", error.code or error.type)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            _errors.exception("request %s failed", call.id)
            call.log["error"] = "internal_error"
            response = error_response(ApiError(500, "The server had an error; it is in its log."))
        if not response.prepared:
            self._add_headers(call, response)
            if not call.request.content.is_eof():  # the rest of the body is not worth reading
                response.force_close()
        return response

    async def _dispatch(self, call: Call, route: Route | None) -> web.StreamResponse:
        path, method = call.request.path, call.request.method
        if route is None:
            raise ApiError(404, f"There is no {path}.", code="unknown_url")
        if method not in route.methods:
            raise ApiError(
                405,
                f"{path} takes {' or '.join(route.methods)}, not {method}.",
                code="method_not_allowed",
                headers={"Allow": ", ".join(route.methods)},
            )
        if not (route.open or (self.open_metrics and path in _COUNTS)):
            call.key = self.keys.find(call.request.headers.get("Authorization"))
            if call.key is None:
                browsers.check(call.request, self.hosts, self.cors_origins)
            elif method == "POST":
                call.key.arrive(call.started)
        return await route.handler(call)

    def _add_headers(self, call: Call, response: web.StreamResponse) -> None:
        response.headers["X-Request-Id"] = call.request_id
        response.headers["Server"] = "shuntserve"
        response.headers.update(call.cors)
        if self.site.draining:
            response.force_close()

    def _entry(self, call: Call, endpoint: str, status: int) -> Entry:
        now = time.perf_counter()
        return Entry(
            {
                "event": "request",
                "time": self.site.timestamp(),
                "id": call.id,
                "request_id": call.request_id,
                "client": call.request.remote,
                "key": call.key.key.name if call.key else None,
                "method": call.request.method,
                "endpoint": endpoint,
                "status": status,
                "duration_ms": round((now - call.started) * 1000, 3),
                **call.log,
            }
        )


def _with_parameter(path: str) -> Route | None:
    prefix = utilities.MODEL_PATH
    named = path.startswith(prefix) and len(path) > len(prefix)
    return _BY_PATH["/v1/models/{model}"] if named else None


def error_response(error: ApiError) -> web.Response:
    """An error as a response."""
    return web.Response(
        body=error.body(),
        status=error.status,
        headers=error.headers,
        content_type="application/json",
    )
