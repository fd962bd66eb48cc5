"""The control plane's end of a node agent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
import cattrs

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.engine import Template, WorkerCommand
from shuntserve_core.interfaces.launcher import AgentAddress
from shuntserve_core.node.server import unstructured
from shuntserve_core.node.watching import SpotWatch
from shuntserve_core.patience import within
from shuntserve_core.tensorstore import ShardSpec

SILENCE_SECONDS = 5.0
"""An agent that says nothing for so long is lost.  The end of one is detected at once."""
logger = logging.getLogger(__name__)

_LOAD_SECONDS = 3600.0
_CALL_SECONDS = 30.0
_STOP_SECONDS = 10.0
"""Less than for other calls: the next engine on the same GPUs waits for this answer."""


class AgentLost(Exception):
    """The agent does not answer: its node is as good as gone."""


class AgentClient:
    """Calls one agent and listens to its events."""

    def __init__(self, address: AgentAddress, session: aiohttp.ClientSession) -> None:
        self.address = address
        self._session = session
        self._headers = {"Authorization": f"Bearer {address.token}"}
        self._watcher: asyncio.Task[None] | None = None
        self.store_sockets: Mapping[int, str] = {}
        """Unix socket of each GPU's tensor store, on the node; known after `describe`."""
        self.devices: Mapping[int, str] = {}
        """What PyTorch calls each GPU on the node, `cpu` where it is only played; as above."""

    async def _call(
        self, method: str, path: str, body: Any = None, *, seconds: float | None = _CALL_SECONDS
    ) -> Any:
        asked = self._ask(method, path, body)
        try:
            status, answer = await (asked if seconds is None else within(seconds, asked))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise AgentLost(f"{self.address.node}: {type(error).__name__}: {error}") from error
        if status >= 400:
            raise UserError(str(answer.get("error", answer)), where=f"node {self.address.node}")
        return answer

    async def _ask(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """The status and the JSON of an answer, whenever it comes."""
        async with self._session.request(
            method,
            self.address.url + path,
            json=body,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None),
            **self.address.tls_options,
        ) as response:
            return response.status, await response.json()

    async def describe(self) -> dict[str, Any]:
        """The agent's account of its node."""
        described: dict[str, Any] = await self._call("GET", "/v1/node")
        self.store_sockets = dict(enumerate(described["store_sockets"]))
        self.devices = dict(enumerate(described.get("devices", ())))
        return described

    async def load_shard(self, gpu: int, spec: ShardSpec) -> dict[str, Any]:
        """Have a GPU's tensor store hold a shard; what it read, and from where."""
        body = cattrs.unstructure(spec)
        path = f"/v1/stores/{gpu}"
        report: dict[str, Any] = await self._call("PUT", path, body, seconds=_LOAD_SECONDS)
        return report

    async def retain(self, gpu: int, specs: Sequence[ShardSpec]) -> int:
        """Have a GPU's store drop all that none of these shards needs; bytes freed."""
        body = [cattrs.unstructure(spec) for spec in specs]
        answer = await self._call("POST", f"/v1/stores/{gpu}/retain", body)
        return int(answer["bytes_freed"])

    async def drop_store(self, gpu: int) -> None:
        """End a GPU's tensor store."""
        await self._call("DELETE", f"/v1/stores/{gpu}")

    async def start_engine(
        self, engine_id: str, commands: Sequence[WorkerCommand], launch: Mapping[str, Any]
    ) -> None:
        """Start workers; `launch` is given back by `describe` for adoption.

        Has no limit of its own: workers may have to wait for what they are forked from, and the
        caller knows how long an engine may take to start.
        """
        body = {"commands": [unstructured(command) for command in commands], "launch": dict(launch)}
        await self._call("POST", f"/v1/engines/{engine_id}", body, seconds=None)

    async def stop_engine(self, engine_id: str, grace: float = 1.0) -> None:
        """End the workers of an engine."""
        path = f"/v1/engines/{engine_id}?grace={grace}"
        await self._call("DELETE", path, seconds=grace + _STOP_SECONDS)

    async def prepare(self, template: Template) -> None:
        """Have the node import what workers need, before there are any."""
        await self._call("POST", "/v1/templates", cattrs.unstructure(template))

    async def free_port(self) -> int:
        """A port on the node that nobody listens on."""
        answer = await self._call("POST", "/v1/ports", {"host": self.address.host})
        return int(answer["port"])

    async def watch_spot(self, watches: Sequence[SpotWatch]) -> None:
        """Have the node listen to these spot sources alone; what it hears comes as events."""
        await self._call("PUT", "/v1/spot", [cattrs.unstructure(watch) for watch in watches])

    async def disable_plugins(self, names: Sequence[str]) -> None:
        """Have the node leave plugins out, beside those that it leaves out by itself."""
        await self._call("PUT", "/v1/plugins", {"disabled": list(names)})

    async def shutdown(self) -> None:
        """Have the agent end, with everything that it started."""
        await self._call("POST", "/v1/shutdown", {})

    def watch(
        self, on_event: Callable[[dict[str, Any]], None], on_lost: Callable[[str], None]
    ) -> None:
        """Call `on_event` for every event, and `on_lost` once with a reason if it falls silent."""
        self._watcher = asyncio.create_task(self._watch(on_event, on_lost))

    async def _watch(
        self, on_event: Callable[[dict[str, Any]], None], on_lost: Callable[[str], None]
    ) -> None:
        reason = "the connection closed"
        try:
            async with self._session.ws_connect(
                self.address.url + "/v1/events", headers=self._headers, **self.address.tls_options
            ) as socket:
                while True:
                    message = await within(SILENCE_SECONDS, socket.receive())
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        break
                    event = json.loads(message.data)
                    if event:
                        _tell(on_event, event)
        except TimeoutError:
            reason = f"silent for {SILENCE_SECONDS:.0f} s"
        except (aiohttp.ClientError, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
        on_lost(reason)

    async def close(self) -> None:
        """Stop listening."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher


def _tell(on_event: Callable[[dict[str, Any]], None], event: dict[str, Any]) -> None:
    try:
        on_event(event)
    except Exception:  # one event that cannot be understood must not deafen us to the others
        logger.exception("event %s failed", event)
