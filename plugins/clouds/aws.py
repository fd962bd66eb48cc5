"""What AWS tells a spot instance about itself: instance metadata, version 2.

`spot/instance-action` is absent (404) until AWS decides to take the instance, and then holds the
action and its time, two minutes ahead at best; it can disappear again.
`events/recommendations/rebalance` says that the risk has risen; it may come long before a notice,
with it, or without one.  Amazon recommends to ask every five seconds.
Source: Amazon EC2 User Guide, "Spot Instance interruption notices" and "Rebalance recommendations".
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import aiohttp
from attrs import define, field, frozen
from attrs.validators import gt

from shuntserve_core.foreign import parse_json
from shuntserve_core.types.spot import SpotEvent

logger = logging.getLogger(__name__)

_TOKEN = "/latest/api/token"  # noqa: S105 - a path, no secret
_ACTION = "/latest/meta-data/spot/instance-action"
_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
_TOKEN_SECONDS = 3600
_REFRESH_EARLY = 15.0


@frozen
class InstanceMetadata:
    """Asks the metadata service of the instance that it runs on."""

    endpoint: str = "http://169.254.169.254"
    """Base URL of the metadata service."""
    interval: float = field(default=5.0, validator=gt(0.0))
    """Seconds between questions."""
    timeout: float = field(default=2.0, validator=gt(0.0))
    """Seconds that an answer may take."""

    on_node = True

    async def events(self, nodes: Sequence[str]) -> AsyncIterator[SpotEvent]:
        """Notices, withdrawals and rebalance recommendations of this instance, each once."""
        timeout = aiohttp.ClientTimeout(total=self.timeout)
        async with aiohttp.ClientSession(self.endpoint, timeout=timeout) as session:
            memory, metadata = _Memory(nodes[0]), _Metadata(session)
            while True:
                began = time.monotonic()
                try:
                    answers = await metadata.get(_ACTION), await metadata.get(_REBALANCE)
                except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                    # No word is not a withdrawal: what was said before stands.
                    memory.complain(error)
                else:
                    for event in memory.compare(*answers):
                        yield event
                await asyncio.sleep(max(0.0, self.interval - (time.monotonic() - began)))


class _Metadata:
    """The service, with its token kept fresh."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._token = ""
        self._expires = 0.0

    async def get(self, path: str) -> dict[str, Any] | None:
        """The document at a path; None where there is none."""
        for attempt in (1, 2):
            token = await self._fresh_token()
            headers = {"X-aws-ec2-metadata-token": token}
            async with self._session.get(path, headers=headers) as response:
                if response.status == 401 and attempt == 1:
                    self._expires = 0.0
                    continue
                if response.status == 404:
                    return None
                response.raise_for_status()
                document = parse_json(await response.text())
                if not isinstance(document, dict):
                    raise ValueError(f"{path} is not an object")
                return document
        return None

    async def _fresh_token(self) -> str:
        if time.monotonic() > self._expires - _REFRESH_EARLY:
            headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
            async with self._session.put(_TOKEN, headers=headers) as response:
                response.raise_for_status()
                self._token = await response.text()
                self._expires = time.monotonic() + _TOKEN_SECONDS
        return self._token


@define
class _Memory:
    """What was said last, so that each thing is told once."""

    node: str
    action: str | None = None
    rebalance: str | None = None
    complained: bool = False

    def complain(self, error: Exception) -> None:
        """Log trouble once until it is over."""
        if not self.complained:
            logger.warning("instance metadata: %s: %s", type(error).__name__, error)
        self.complained = True

    def compare(
        self, action: dict[str, Any] | None, rebalance: dict[str, Any] | None
    ) -> list[SpotEvent]:
        """Events for what is new."""
        self.complained = False
        events = []
        said = None if action is None else json.dumps(action, sort_keys=True)
        if said != self.action:
            if action is not None:
                events.append(SpotEvent(self.node, "notice", _deadline(action), source="aws"))
            else:
                events.append(SpotEvent(self.node, "withdrawn", source="aws"))
            self.action = said
        advised = None if rebalance is None else json.dumps(rebalance, sort_keys=True)
        if advised != self.rebalance:
            if rebalance is not None:
                events.append(SpotEvent(self.node, "rebalance", source="aws"))
            self.rebalance = advised
        return events


def _deadline(action: dict[str, Any]) -> float | None:
    """When it happens, in seconds since the epoch; hibernation begins at once."""
    if action.get("action", action.get("instance-action")) == "hibernate":
        return time.time()
    try:
        return datetime.fromisoformat(str(action["time"])).timestamp()
    except (KeyError, ValueError):
        return None
