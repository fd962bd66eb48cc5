"""The engine's end of a link: a thread of its own, so that it answers while the engine computes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self, TypeVarTuple, Unpack

from shuntserve_core.interfaces.link import STARTING, STATES, EngineHandler, RequestRefused
from shuntserve_core.link import messages as m
from shuntserve_core.link.address import Address, parse_address
from shuntserve_core.link.connection import Connection, LinkPolicy
from shuntserve_core.link.frames import Message, ProtocolError
from shuntserve_core.link.handshake import Handshake
from shuntserve_core.types.request import EngineInfo, StepOutput

Ts = TypeVarTuple("Ts")
log = logging.getLogger(__name__)

_MOST_STRANGERS = 64
"""Handshakes under way at once; who comes then takes the place of the oldest."""
_LAST_WORDS = 1.0
"""Seconds to write what is buffered when the engine stops."""


class LinkServer:
    """Listens for the control plane; one client at a time, and the newest one counts.

    `start` returns once it listens.  `send_step` and `announce` may be called from any thread;
    the handler's methods are called on the link's own thread.
    """

    def __init__(
        self,
        info: EngineInfo,
        handler: EngineHandler,
        token: str,
        policy: LinkPolicy | None = None,
    ) -> None:
        self.info = info
        self.handler = handler
        self.state = STARTING
        self._token = token
        self._policy = policy or LinkPolicy()
        self._steps: deque[Sequence[StepOutput]] = deque()
        self._flushing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._client: _Client | None = None
        self._connections: set[_Client] = set()
        self._strangers: dict[_Client, None] = {}
        """Those of them that have proved nothing yet, the oldest first."""
        self._thread: threading.Thread | None = None

    def start(self, address: str = "127.0.0.1:0") -> str:
        """Listen; returns the address that clients connect to.  Raises `OSError`, `UserError`."""
        listening: Future[str] = Future()
        target = parse_address(address)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(target, listening)), name="link", daemon=True
        )
        self._thread.start()
        return listening.result()

    def announce(self, state: str) -> None:
        """Say which of `interfaces.link.STATES` the engine is in now."""
        if state not in STATES:
            raise ValueError(f"unknown state {state!r}")
        self.state = state
        self._on_thread(self._send_state, state)

    def send_step(self, outputs: Sequence[StepOutput]) -> None:
        """Send what one engine step produced.  Outputs of dropped requests are left out."""
        if not outputs:
            return
        self._steps.append(outputs)
        if not self._flushing:  # else a flush is on its way that will take these along
            self._flushing = True
            self._on_thread(self._flush)

    def stop(self) -> None:
        """Send what is waiting, close every connection and end the thread."""
        stop, thread = self._stop, self._thread
        if stop is not None and thread is not None and thread.is_alive():
            self._on_thread(stop.set)
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _on_thread(self, function: Callable[[Unpack[Ts]], object], *arguments: *Ts) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody listens
                loop.call_soon_threadsafe(function, *arguments)

    async def _serve(self, target: Address, listening: Future[str]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            if target.path:
                server = await self._loop.create_unix_server(self._connection, target.path)
                bound = target
            else:
                server = await self._loop.create_server(self._connection, target.host, target.port)
                bound = Address(target.host, server.sockets[0].getsockname()[1])
        except BaseException as error:
            listening.set_exception(error)
            return
        listening.set_result(str(bound))
        await self._stop.wait()
        self._flush()
        server.close()
        leaving = tuple(self._connections)
        for connection in leaving:
            connection.dismiss("the engine stops")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(c.gone.wait() for c in leaving)), _LAST_WORDS)

    def _connection(self) -> _Client:
        connection = _Client(self, self._token, self._policy)
        self._connections.add(connection)
        return connection

    def _arrived(self, client: _Client) -> None:
        """Give a client its time to prove itself, at the cost of the oldest if they are many."""
        self._strangers[client] = None
        if len(self._strangers) > _MOST_STRANGERS:
            next(iter(self._strangers)).cut("others came meanwhile")

    def _flush(self) -> None:
        self._flushing = False
        steps, client = self._steps, self._client
        while steps:
            outputs = steps.popleft()
            if client is not None:
                client.send_step(outputs)

    def _send_state(self, state: str) -> None:
        if self._client is not None:
            self._client.send((m.STATE, state))

    def _admit(self, client: _Client) -> None:
        """Make a client that has proved itself the one that counts."""
        self._strangers.pop(client, None)
        if self._client is not None:
            self._client.dismiss("another client took over")
        self._client = client

    def _dropped(self, client: _Client) -> None:
        self._connections.discard(client)
        self._strangers.pop(client, None)
        if self._client is client:
            self._client = None


class _Client(Connection):
    """The connection of one client, trusted or not yet; lives on the link's thread."""

    def __init__(self, server: LinkServer, token: str, policy: LinkPolicy) -> None:
        super().__init__(policy)
        self._server = server
        self._handler = server.handler
        self._handshake: Handshake | None = Handshake(token)
        self._challenged = False
        self._silent = 0
        self._open: set[str] = set()
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Give the client its time for the handshake."""
        super().connection_made(transport)
        self._server._arrived(self)
        self._watch = asyncio.get_running_loop().call_later(
            self.policy.handshake, self.cut, "no handshake in time"
        )

    def send_step(self, outputs: Sequence[StepOutput]) -> None:
        """Write one STEP, of the requests that are open."""
        requests = self._open
        items = []
        for output in outputs:
            if output.id in requests:
                *parts, last = m.bounded(output)
                for part in parts:
                    self.send((m.STEP, m.step_item(part)))
                items.append(m.step_item(last))
                if output.finish is not None:
                    requests.discard(output.id)
        if items:
            self.send((m.STEP, *items))

    def on_message(self, message: Message) -> None:
        """Handle a message."""
        kind = message[0]
        if self._handshake is not None:
            self._shake(self._handshake, message)
        elif kind == m.PING and len(message) == 2:
            self.send(m.pong_message(message[1], self._handler.load()))
        elif kind == m.SUBMIT:
            self._submit(message)
        elif kind == m.ABORT:
            request_id = m.text_of(message)
            if request_id in self._open:
                self._open.discard(request_id)
                self._handler.abort(request_id)
        elif kind == m.ACTIVATE:
            self._handler.activate()
        else:
            raise ProtocolError(f"unknown kind of message {kind}")

    def on_end(self, reason: str) -> None:
        """Abort whatever ran for this client."""
        log.info("link client gone: %s", reason)
        if self._watch is not None:
            self._watch.cancel()
        self._server._dropped(self)
        requests, self._open = self._open, set()
        for request_id in requests:
            self._handler.abort(request_id)

    def _submit(self, message: Message) -> None:
        request = m.submitted(message)
        if request.id in self._open:
            raise ProtocolError(f"request {request.id!r} is open already")
        self._open.add(request.id)
        missing = request.features - self._server.info.features
        if missing:  # an engine would ignore what it has never heard of
            reason = f"this engine has no {', '.join(sorted(missing))}"
            self._refuse(request.id, reason, bad_request=True)
            return
        try:
            self._handler.submit(request)
        except RequestRefused as error:
            self._refuse(request.id, str(error), bad_request=True)
        except Exception as error:  # the engine's mistake costs one request, not all of them
            log.exception("the engine failed to take request %s", request.id)
            self._refuse(request.id, f"{type(error).__name__}: {error}", bad_request=False)

    def _refuse(self, request_id: str, error: str, *, bad_request: bool) -> None:
        output = StepOutput(request_id, finish="error", error=error, bad_request=bad_request)
        self.send_step([output])

    def _shake(self, handshake: Handshake, message: Message) -> None:
        if not self._challenged:
            self.send(handshake.challenge(message))
            self._challenged = True
            return
        handshake.verify(message)
        self._handshake = None
        self.trust()
        self._server._admit(self)
        self.send((m.WELCOME, m.info_map(self._server.info), self._server.state))
        self._listen_for_life()

    def _listen_for_life(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._silent = 0 if self.heard else self._silent + 1
        self.heard = False
        if self._silent * self.policy.interval > self.policy.client_silence:
            self.cut("the client is silent")
            return
        self._watch = asyncio.get_running_loop().call_later(
            self.policy.interval, self._listen_for_life
        )
