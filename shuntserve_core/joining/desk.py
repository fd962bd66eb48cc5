"""The control plane's side of machines that join: who is there, and orders to them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import secrets
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import attrs
from aiohttp import WSCloseCode, WSMsgType, web
from attrs import define, field, frozen

from shuntserve_core._version import __version__
from shuntserve_core.api import body_of, checked_host, checked_name, structured
from shuntserve_core.errors import UserError
from shuntserve_core.files import private_dir, write_private
from shuntserve_core.foreign import parse_json
from shuntserve_core.joining.messages import (
    HEARTBEAT_SECONDS,
    LONGEST,
    Answer,
    End,
    Enrolled,
    Enrolment,
    Hello,
    Launch,
    plain,
)
from shuntserve_core.trust.authority import Authority, machine_name, machine_of
from shuntserve_core.trust.tickets import TicketBook, TicketRefused

logger = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 5.0
HELLO_SECONDS = 5.0
MOST_MACHINES = 4096
"""Connections at once; more are turned away."""


class MachineLost(Exception):
    """The machine does not answer."""


@define(eq=False)
class Machine:
    """A machine that is connected."""

    id: str
    instance: str
    hello: Hello
    _socket: web.WebSocketResponse
    node: str = ""
    """The node that it is; empty while it waits to be one."""
    _orders: dict[int, asyncio.Future[Answer]] = field(factory=dict, init=False)

    async def order(self, order: Launch | End, seconds: float) -> Answer:
        """Tell it, and wait for what becomes of it.  Raises `MachineLost`."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._orders[order.order] = answer
        try:
            await self._socket.send_json(plain(order))
            return await asyncio.wait_for(answer, seconds)
        except (TimeoutError, ConnectionError, RuntimeError) as error:
            raise MachineLost(f"machine {self.id}: {type(error).__name__}") from error
        finally:
            del self._orders[order.order]

    def answered(self, answer: Answer) -> None:
        """Give an answer to whoever waits for it."""
        waits = self._orders.get(answer.order)
        if waits is not None and not waits.done():
            waits.set_result(answer)

    def lost(self) -> None:
        """Its connection has ended."""
        for waits in self._orders.values():
            if not waits.done():
                waits.set_exception(MachineLost(f"machine {self.id} has gone"))

    async def close(self) -> None:
        """Hang up: it dials again."""
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self._socket.close(code=WSCloseCode.GOING_AWAY)


@frozen
class _Record:
    """What is kept of a machine that has a certificate."""

    instance: str
    ticket: str


class Desk:
    """Takes machines in, and knows those that are connected."""

    def __init__(
        self,
        directory: Path,
        authority: Authority,
        book: TicketBook,
        wanted: Callable[[], Collection[str]],
    ) -> None:
        """`directory` keeps who has a certificate; `wanted` names nodes whose agents may run on."""
        self.machines: dict[str, Machine] = {}
        self._records = private_dir(directory)
        self._authority, self._book, self._wanted = authority, book, wanted
        self._numbers = itertools.count(1)
        self._came = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; the address.  Raises `UserError`."""
        app = web.Application(client_max_size=LONGEST)
        app.add_routes([web.post("/v1/machines", self._enrol), web.get("/v1/host", self._host)])
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.5, max_line_size=2048, max_field_size=4096
        )
        await self._runner.setup()
        context = self._authority.identity().server(strangers=True)
        try:
            self._server = await asyncio.get_running_loop().create_server(
                self._runner.server,  # type: ignore[arg-type]
                host,
                port,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
        except OSError as error:
            await self._runner.cleanup()
            reason = f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}"
            raise UserError(reason, where="launcher.listen") from error
        found = self._server.sockets[0].getsockname()
        return str(found[0]), int(found[1])

    async def close(self) -> None:
        """Hang up on everybody; agents go on until they are told otherwise."""
        if self._server is not None:
            self._server.close()
        for machine in list(self.machines.values()):
            await machine.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def next_order(self) -> int:
        """A number for an order."""
        return next(self._numbers)

    async def find(
        self, instance: str, suits: Callable[[Machine], bool], best: Callable[[Machine], Any]
    ) -> Machine:
        """A connected machine of the type that `suits`, the least by `best`; waits for one."""
        async with self._came:
            while True:
                fit = [m for m in self.machines.values() if m.instance == instance and suits(m)]
                if fit:
                    return min(fit, key=best)
                await self._came.wait()

    async def changed(self) -> None:
        """Have whoever waits for a machine look again."""
        async with self._came:
            self._came.notify_all()

    def waiting(self) -> dict[str, int]:
        """How many machines of each type wait to be a node."""
        counts: dict[str, int] = {}
        for machine in self.machines.values():
            counts[machine.instance] = counts.get(machine.instance, 0) + (not machine.node)
        return {instance: count for instance, count in counts.items() if count}

    # Strangers

    async def _enrol(self, request: web.Request) -> web.Response:
        try:
            asked = await body_of(request, Enrolment)
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)
        if reason := _unequal(asked.version):
            return web.json_response({"error": reason}, status=409)
        machine = secrets.token_hex(8)
        try:
            # Signed first: a ticket is not used up by a request that cannot be signed.
            certificate = self._authority.sign(asked.request, machine_name(machine))
            instance = self._book.redeem(asked.ticket, asked.secret, machine)
        except UserError as error:
            return web.json_response({"error": str(error)}, status=400)
        except TicketRefused as error:
            logger.warning("a ticket shown from %s was refused: %s", request.remote, error)
            return web.json_response({"error": f"the ticket is refused: {error}"}, status=403)
        record = _Record(instance, asked.ticket)
        write_private(self._records / f"{machine}.json", json.dumps(attrs.asdict(record)))
        logger.info("machine %s, %s, came from %s", machine, instance, request.remote)
        return web.json_response(plain(Enrolled(machine, instance, certificate)))

    # Machines

    async def _host(self, request: web.Request) -> web.WebSocketResponse:
        machine = self._known(request)
        record = self._record(machine)
        if len(self.machines) >= MOST_MACHINES:
            raise web.HTTPServiceUnavailable(reason="too many machines")
        socket = web.WebSocketResponse(heartbeat=HEARTBEAT_SECONDS, max_msg_size=LONGEST)
        await socket.prepare(request)
        hello = await self._greeted(machine, socket)
        if hello is None:
            return socket
        here = Machine(machine, record.instance, hello, socket)
        if before := self.machines.pop(machine, None):
            await before.close()
        self.machines[machine] = here
        ours = [node for node in hello.nodes if node in self._wanted()]
        here.node = ours[0] if ours else ""
        stray = [node for node in hello.nodes if node not in ours]
        logger.info("machine %s is there: %s at %s", machine, record.instance, hello.host)
        ends = asyncio.create_task(self._end(here, stray))
        try:
            await _listen(socket, here)
        finally:
            ends.cancel()
            here.lost()
            if self.machines.get(machine) is here:
                del self.machines[machine]
                logger.warning("machine %s has gone", machine)
        return socket

    async def _end(self, machine: Machine, nodes: Iterable[str]) -> None:
        """What runs there for nobody is ended before anybody is told that it is there."""
        for node in nodes:
            with contextlib.suppress(MachineLost):
                await machine.order(End(self.next_order(), node), HELLO_SECONDS)
        await self.changed()

    def _known(self, request: web.Request) -> str:
        machine = machine_of(request.get_extra_info("peercert"))
        if not machine:
            raise web.HTTPUnauthorized(reason="no certificate of a machine of this cluster")
        return machine

    def _record(self, machine: str) -> _Record:
        path = self._records / f"{checked_name(machine, 'a machine')}.json"
        try:
            return structured(parse_json(path.read_bytes()), _Record)
        except (OSError, ValueError, UserError) as error:
            logger.warning("machine %s is not known (any more): %s", machine, error)
            raise web.HTTPForbidden(reason="this machine is not known") from error

    async def _greeted(self, machine: str, socket: web.WebSocketResponse) -> Hello | None:
        """What it says first; None, and the connection closed with a reason, if that is refused."""
        try:
            message = await socket.receive(HELLO_SECONDS)
            if message.type is not WSMsgType.TEXT:
                raise UserError("no greeting")
            hello = structured(parse_json(message.data.encode()), Hello)
            reason = _unequal(hello.version)
            checked_host(hello.host)
            for node in hello.nodes:
                checked_name(node, "a node")
        except (TimeoutError, ValueError, UserError) as error:
            reason, hello = f"no proper greeting: {error}", None
        if reason:
            logger.warning("machine %s is refused: %s", machine, reason)
            await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=reason[:120].encode())
            return None
        return hello


async def _listen(socket: web.WebSocketResponse, machine: Machine) -> None:
    async for message in socket:
        if message.type is not WSMsgType.TEXT:
            break
        try:
            machine.answered(structured(parse_json(message.data.encode()), Answer))
        except (ValueError, UserError) as error:
            logger.warning("machine %s said what is no answer: %s", machine.id, error)
            break


def _unequal(version: str) -> str:
    """Why a machine of another version is refused; empty for the same."""
    if version == __version__:
        return ""
    return f"it runs shuntserve {version[:40]}, and the control plane {__version__}"
