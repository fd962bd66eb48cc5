"""A stand-in for the metadata service of an EC2 instance, as far as spot instances need it."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from aiohttp import web
from attrs import define, field


@define
class Ec2Metadata:
    """Answers on loopback; change its attributes to change what it says."""

    action: str | None = None
    """`terminate`, `stop` or `hibernate` once there is a notice; None before."""
    action_in: float = 120.0
    """Seconds from the notice to the action."""
    action_delay: float = 0.0
    """Seconds from the start to the notice, once `action` is set."""
    rebalance: bool = False
    """Whether there is a rebalance recommendation."""
    rebalance_delay: float = 0.0
    """Seconds from the start to the recommendation."""
    version_2_only: bool = True
    """Refuse requests without a token, as instances do by default."""
    status: int | None = None
    """Answer everything with this status instead, such as 500."""
    token_seconds: float | None = None
    """Let tokens expire after this, whatever was asked for."""
    requests: list[str] = field(factory=list)
    """Paths asked for, for assertions."""
    _tokens: dict[str, float] = field(init=False, factory=dict)
    _started: float = field(init=False, factory=time.monotonic)
    _action_time: datetime | None = field(init=False, default=None)
    _runner: web.AppRunner | None = field(init=False, default=None)

    async def start(self) -> str:
        """Listen on a free port; the base URL."""
        app = web.Application()
        app.add_routes(
            [web.put("/latest/api/token", self._token), web.get("/{path:.*}", self._get)]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._started = time.monotonic()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _token(self, request: web.Request) -> web.Response:
        self.requests.append("/latest/api/token")
        if self.status is not None:
            return web.Response(status=self.status)
        wanted = request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if not wanted.isdigit() or not 1 <= int(wanted) <= 21600:
            return web.Response(status=400)
        token = secrets.token_urlsafe(40)
        self._tokens[token] = time.monotonic() + (self.token_seconds or int(wanted))
        return web.Response(text=token)

    async def _get(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        if self.status is not None:
            return web.Response(status=self.status)
        token = request.headers.get("X-aws-ec2-metadata-token")
        if token is None and self.version_2_only:
            return web.Response(status=401)
        if token is not None and self._tokens.get(token, 0.0) < time.monotonic():
            return web.Response(status=401)
        document = self._document(request.path.removeprefix("/latest/meta-data/"))
        return web.Response(status=404) if document is None else web.json_response(document)

    def _document(self, path: str) -> dict[str, Any] | None:
        up = time.monotonic() - self._started
        if path == "spot/instance-action" and self.action and up >= self.action_delay:
            if self._action_time is None:
                self._action_time = datetime.now(UTC) + timedelta(seconds=self.action_in)
            return {"action": self.action, "time": _stamp(self._action_time)}
        if self.action is None:
            self._action_time = None
        if path == "events/recommendations/rebalance" and self.rebalance:
            noticed = datetime.now(UTC).replace(microsecond=0, second=0, minute=0)
            return {"noticeTime": _stamp(noticed)} if up >= self.rebalance_delay else None
        return None


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
