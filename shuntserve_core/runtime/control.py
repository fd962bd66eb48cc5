"""The control plane's own interface: status, and what a person may tell it.

It listens on loopback, and wants a secret that it leaves in the state directory for its owner.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from attrs import field, frozen
from attrs.validators import and_, ge, in_, le, optional

from shuntserve_core.api import body_of, guarded
from shuntserve_core.errors import UserError, did_you_mean
from shuntserve_core.files import write_private
from shuntserve_core.runtime.manager import Manager
from shuntserve_core.runtime.places import announce
from shuntserve_core.types.spot import EVENT_KINDS, SpotEvent

CONTROL_FILE = "control.json"
"""In the state directory: `{"url": ..., "token": ..., "pid": ...}`, readable by its owner."""
MOST_NOTICE = 7 * 86400.0
"""Seconds; no cloud announces an interruption earlier."""


class ControlServer:
    """Serves `manager`; `extra` adds to the status what others know."""

    def __init__(
        self, manager: Manager, state_dir: Path, extra: Callable[[], dict[str, Any]]
    ) -> None:
        self._manager = manager
        self._file = state_dir / CONTROL_FILE
        self._extra = extra
        self._token = secrets.token_urlsafe(32)
        self._runner: web.AppRunner | None = None
        self._announcement: Path | None = None

    async def start(self) -> str:
        """Listen on a free port of loopback; the URL."""
        app = web.Application(middlewares=[guarded(self._token)])
        app.add_routes([web.get("/v1/status", self._status), web.post("/v1/events", self._event)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        text = json.dumps({"url": url, "token": self._token, "pid": os.getpid()})
        write_private(self._file, text)
        self._announcement = announce(self._file.parent)
        return url

    async def close(self) -> None:
        """Stop listening."""
        self._file.unlink(missing_ok=True)
        if self._announcement is not None:
            self._announcement.unlink(missing_ok=True)
        if self._runner is not None:
            await self._runner.cleanup()

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response({**self._manager.cluster.status(), **self._extra()})

    async def _event(self, request: web.Request) -> web.Response:
        """`{"node": ..., "kind": ..., "notice": seconds}`: as if a cloud had said so."""
        body = await body_of(request, _Event)
        if body.node not in self._manager.cluster.nodes:
            known = list(self._manager.cluster.nodes)
            remedy = did_you_mean(body.node, known)
            raise UserError(f"no node is called {body.node[:80]!r}", remedy=remedy)
        deadline = None if body.notice is None else time.time() + body.notice
        event = SpotEvent(body.node, body.kind, deadline, source="admin", enforced=True)
        self._manager.membership.on_spot_event(event)
        return web.json_response({})


@frozen
class _Event:
    """Body of an event."""

    node: str
    kind: str = field(validator=in_(EVENT_KINDS))
    notice: float | None = field(default=None, validator=optional(and_(ge(0), le(MOST_NOTICE))))
