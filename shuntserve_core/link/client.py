"""The control plane's end of a link."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeVar

from shuntserve_core.interfaces.link import READY, STARTING, STATES, LinkLost, RequestRefused
from shuntserve_core.link import messages as m
from shuntserve_core.link.address import parse_address
from shuntserve_core.link.connection import Connection, LinkPolicy
from shuntserve_core.link.frames import Message, ProtocolError, encode
from shuntserve_core.link.handshake import Handshake
from shuntserve_core.types.request import EngineInfo, EngineLoad, EngineRequest, StepOutput

T = TypeVar("T")
log = logging.getLogger(__name__)

_NOBODY = EngineInfo("", "", "", 0, 0)


class LinkClient(Connection):
    """An `EngineLink` over a socket; open one with `connect`."""

    def __init__(self, token: str, policy: LinkPolicy) -> None:
        super().__init__(policy)
        self.info = _NOBODY
        self.state = STARTING
        self.load = EngineLoad()
        self._handshake: Handshake | None = Handshake(token)
        self._proved = False
        self._loop = asyncio.get_running_loop()
        self._welcomed: asyncio.Future[None] = self._loop.create_future()
        self._activated: asyncio.Future[None] = self._loop.create_future()
        self._open: dict[str, tuple[str, Callable[[StepOutput], None]]] = {}
        self._wire_ids: dict[str, str] = {}
        self._submitted = 0
        self._lost_callbacks: list[Callable[[str], None]] = []
        self._state_callbacks: list[Callable[[str], None]] = []
        self._silent = 0
        self._pings = 0

    @classmethod
    async def connect(
        cls, address: str, token: str, policy: LinkPolicy | None = None
    ) -> LinkClient:
        """Open a link.  Raises `LinkLost` where nobody answers, or not as an engine would."""
        policy = policy or LinkPolicy()
        target, loop = parse_address(address), asyncio.get_running_loop()
        client = cls(token, policy)
        try:
            async with asyncio.timeout(policy.handshake):
                if target.path:
                    await loop.create_unix_connection(lambda: client, target.path)
                else:
                    await loop.create_connection(lambda: client, target.host, target.port)
                await client._welcomed
        except (OSError, TimeoutError) as error:
            client.cut("no handshake")
            reason = str(error) or f"no answer within {policy.handshake} s"
            raise LinkLost(f"engine at {address}: {reason}") from error
        except LinkLost as error:
            raise LinkLost(f"engine at {address}: {error}") from error
        except asyncio.CancelledError:
            client.cut("cancelled")
            raise
        return client

    @property
    def lost(self) -> str | None:
        """Why the link is gone, or None."""
        return self.ended

    def submit(self, request: EngineRequest, on_output: Callable[[StepOutput], None]) -> None:
        """As `EngineLink.submit`."""
        if self.ended is not None:
            raise LinkLost(self.ended)
        if request.id in self._wire_ids:
            raise ValueError(f"request {request.id!r} is open on this link already")
        # On the wire no id comes twice, so late words of an aborted request reach nobody else.
        self._submitted += 1
        wire_id = f"{self._submitted}:{request.id}"
        try:
            message = m.submit_message(request, wire_id)
            frame = encode(message)
        except ProtocolError as error:
            raise RequestRefused(str(error)) from error
        self._wire_ids[request.id] = wire_id
        self._open[wire_id] = (request.id, on_output)
        self.send_frame(frame)

    def abort(self, request_id: str) -> None:
        """As `EngineLink.abort`."""
        wire_id = self._wire_ids.pop(request_id, None)
        if wire_id is not None:
            del self._open[wire_id]
            self.send((m.ABORT, wire_id))

    async def activate(self) -> None:
        """As `EngineLink.activate`."""
        self.send((m.ACTIVATE,))
        await asyncio.shield(self._activated)

    def on_lost(self, callback: Callable[[str], None]) -> None:
        """As `EngineLink.on_lost`."""
        if self.ended is not None:
            callback(self.ended)
        else:
            self._lost_callbacks.append(callback)

    def on_state(self, callback: Callable[[str], None]) -> None:
        """As `EngineLink.on_state`."""
        self._state_callbacks.append(callback)

    def close(self) -> None:
        """As `EngineLink.close`."""
        self.dismiss("closed by the control plane")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        super().connection_made(transport)
        if self.ended is not None:
            transport.close()
        elif self._handshake is not None:
            self.send(self._handshake.hello())

    def on_message(self, message: Message) -> None:
        """Handle a message; the most frequent kind first."""
        kind = message[0]
        if self._handshake is not None:
            self._shake(self._handshake, message)
        elif kind == m.STEP:
            self._step(message)
        elif kind == m.PONG:
            self.load = m.pong_load(message)
        elif kind == m.STATE:
            self._set_state(m.text_of(message))
        else:
            raise ProtocolError(f"unknown kind of message {kind}")

    def on_end(self, reason: str) -> None:
        """Tell everybody who waits for something."""
        for future in (self._welcomed, self._activated):
            if not future.done():
                future.set_exception(LinkLost(reason))
                future.exception()  # nobody may be waiting, which is no mistake
        callbacks, self._lost_callbacks = self._lost_callbacks, []
        for tell in callbacks:
            _call(tell, reason)
        requests, self._open, self._wire_ids = self._open, {}, {}
        for request_id, on_output in requests.values():
            error = f"link lost: {reason}"
            _call(on_output, StepOutput(request_id, finish="error", error=error))

    def _shake(self, handshake: Handshake, message: Message) -> None:
        if not self._proved:
            self.send(handshake.prove(message))
            self._proved = True
            self.trust()
            return
        if len(message) != 3 or message[0] != m.WELCOME:
            raise ProtocolError("expected a welcome")
        self.info = m.info_of(message[1])
        self._handshake = None
        self._set_state(message[2])
        self._welcomed.set_result(None)
        self._loop.call_later(self.policy.interval, self._heartbeat)

    def _step(self, message: Message) -> None:
        requests = self._open
        for item in message[1:]:
            try:
                entry = requests.get(item[0])
            except (TypeError, IndexError) as error:
                raise ProtocolError(f"malformed step: {error}") from error
            if entry is None:
                continue  # aborted, or of an earlier client of this engine
            request_id, on_output = entry
            output = m.step_output(item, request_id)
            if output.finish is not None:
                del requests[item[0]], self._wire_ids[request_id]
            _call(on_output, output)

    def _set_state(self, state: object) -> None:
        if state not in STATES:
            raise ProtocolError(f"unknown state {state!r}")
        self.state = str(state)
        if state == READY and not self._activated.done():
            self._activated.set_result(None)
        for tell in tuple(self._state_callbacks):
            _call(tell, self.state)

    def _heartbeat(self) -> None:
        if self.ended is not None:
            return
        # In one turn of the loop reading comes before timers: if this process paused, what the
        # engine said meanwhile has been heard by now, and the pause counts as one heartbeat.
        self._silent = 0 if self.heard else self._silent + 1
        self.heard = False
        policy = self.policy
        allowed = policy.missed if self.state == READY else policy.missed_while_starting
        if self._silent > allowed - 1:
            self.cut(f"the engine is silent: {self._silent} heartbeats unanswered")
            return
        self._pings += 1
        self.send((m.PING, self._pings))
        self._loop.call_later(policy.interval, self._heartbeat)


def _call(callback: Callable[[T], None], value: T) -> None:
    """One owner's mistake must not cost the others their words."""
    try:
        callback(value)
    except Exception:
        log.exception("a callback of the link failed")
