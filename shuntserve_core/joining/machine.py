"""A machine's side: `shuntserve node join` dials the control plane, and runs the agents it wants.

Agents are sessions of their own: they outlive this process, which finds them again by a file each.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import secrets
import shutil
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
import attrs
import cattrs
from attrs import frozen

from shuntserve_core._version import __version__
from shuntserve_core.api import structured
from shuntserve_core.errors import UserError
from shuntserve_core.files import file_name, private_dir, write_private
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
from shuntserve_core.node.starting import AgentOptions, AgentProcesses, AgentRecord
from shuntserve_core.trust.authority import CONTROL, Identity, make_request, trusting
from shuntserve_core.trust.tickets import Ticket

logger = logging.getLogger(__name__)

_CALL = aiohttp.ClientTimeout(total=15.0)
_FIRST_REDIAL, _LAST_REDIAL = 0.5, 10.0
_REFUSALS = {
    401: "this machine's certificate is not one of the cluster",
    403: "this machine is not known to the cluster (any more)",
}


class Refused(Exception):
    """The control plane was reached and does not want this machine."""


@frozen
class Facts:
    """What the machine says of itself; what is empty is found out."""

    host: str = ""
    instance_id: str = ""
    zone: str = ""


@frozen
class _Running:
    """An agent, as its file says."""

    agent: AgentRecord
    run_dir: str


class JoiningMachine:
    """One machine's membership in one cluster, kept in `directory`."""

    def __init__(self, directory: Path, urls: Sequence[str], facts: Facts) -> None:
        self._directory = private_dir(directory)
        self._identity = Identity.at(private_dir(directory / "identity"))
        self._urls = _remembered(directory / "addresses.json", urls)
        self._facts = facts
        self._agents = Agents(private_dir(directory / "nodes"), self._identity)

    async def run(self, stop: asyncio.Event, ticket: Ticket | None = None) -> None:
        """Join, and be there until `stop`; what does not answer is dialled again for ever.

        A `ticket` is needed where the machine has no certificate yet.  Raises `UserError` where the
        control plane was reached and does not want this machine.
        """
        if not (self._identity.complete or ticket):
            raise UserError(
                "this machine has no certificate of the cluster",
                where="--ticket",
                remedy="give a ticket; where the control plane runs: shuntserve ticket CONFIG TYPE",
            )
        staying = asyncio.create_task(self._stay(ticket))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({staying, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if staying.done():
                staying.result()
        finally:
            for task in (staying, stopping):
                task.cancel()
            await asyncio.wait({staying, stopping})

    async def _stay(self, ticket: Ticket | None) -> None:
        pause = _FIRST_REDIAL
        while True:
            for url in self._urls:
                try:
                    if not self._identity.complete and ticket is not None:
                        await self._enrol(url, ticket)
                    await self._dial(url, self._identity.client())
                    pause = _FIRST_REDIAL
                except Refused as error:
                    remedy = f"for a new ticket, remove {self._directory} first"
                    raise UserError(str(error), where=url, remedy=remedy) from error
                except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                    logger.warning("%s: %s", url, _reason(error))
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, _LAST_REDIAL)

    async def _enrol(self, url: str, ticket: Ticket) -> None:
        """Get a certificate for a ticket.  Raises `Refused`."""
        key, request = make_request()
        body = plain(Enrolment(ticket.id, ticket.secret, request))
        tls = trusting(ticket.authority)
        async with (
            aiohttp.ClientSession(timeout=_CALL) as session,
            session.post(
                f"{url}/v1/machines", json=body, ssl=tls, server_hostname=CONTROL
            ) as response,
        ):
            answer = parse_json(await response.content.read(LONGEST))
            if response.status != 200:
                raise Refused(str(answer.get("error", answer))[:300])
        enrolled = structured(answer, Enrolled)
        write_private(self._identity.key, key)
        write_private(self._identity.authority, ticket.authority)
        write_private(self._identity.certificate, enrolled.certificate)
        logger.info("joined as machine %s, %s", enrolled.machine, enrolled.instance)

    async def _dial(self, url: str, tls: ssl.SSLContext) -> None:
        """One connection, for as long as it lasts.  Raises `Refused`."""
        async with (
            aiohttp.ClientSession(timeout=_CALL) as session,
            _connected(
                session,
                f"{url}/v1/host",
                ssl=tls,
                server_hostname=CONTROL,
                heartbeat=HEARTBEAT_SECONDS,
                max_msg_size=LONGEST,
            ) as connection,
        ):
            hello = self._hello(connection)
            await connection.send_json(plain(hello))
            logger.info("with the control plane at %s", url)
            orders: set[asyncio.Task[None]] = set()
            try:
                while True:
                    message = await connection.receive()
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        break
                    task = asyncio.create_task(self._obey(connection, message.data, hello.host))
                    orders.add(task)
                    task.add_done_callback(orders.discard)
            finally:
                for task in orders:
                    task.cancel()
            if connection.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION:
                raise Refused(str(message.extra or "this machine is refused"))

    def _hello(self, connection: aiohttp.ClientWebSocketResponse) -> Hello:
        name = connection.get_extra_info("sockname")
        return Hello(
            version=__version__,
            host=self._facts.host or str(name[0]),
            hostname=socket.gethostname()[:200],
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            instance_id=self._facts.instance_id,
            zone=self._facts.zone,
            nodes=tuple(self._agents.running()),
        )

    async def _obey(
        self, connection: aiohttp.ClientWebSocketResponse, text: str, host: str
    ) -> None:
        order = _order_of(text)
        if isinstance(order, Launch):
            answer = await self._agents.launch(order, host)
        elif isinstance(order, End):
            await self._agents.end(order.node)
            answer = Answer(order.order)
        else:
            logger.error("an order that is none: %s", text[:200])
            return
        with contextlib.suppress(ConnectionError, RuntimeError):
            await connection.send_json(plain(answer))


class Agents:
    """Agents on this machine: one at a time, each with a file of its own."""

    def __init__(self, directory: Path, identity: Identity) -> None:
        self._directory = directory
        self._identity = identity
        self._lock = asyncio.Lock()
        self._processes = AgentProcesses()

    def running(self) -> list[str]:
        """Nodes whose agents run."""
        files = sorted(self._directory.glob("*/agent.json"))
        return [unquote(file.parent.name) for file in files if self._read(file) is not None]

    async def launch(self, order: Launch, host: str) -> Answer:
        """Start one, in the place of all others."""
        async with self._lock:
            for node in self.running():
                await self._end(node)
            try:
                return Answer(order.order, url=await self._start(order, host))
            except UserError as error:
                return Answer(order.order, error=str(error)[:8000])

    async def end(self, node: str) -> None:
        """End one, and everything that it started; unknown ones are ignored."""
        async with self._lock:
            await self._end(node)

    async def _start(self, order: Launch, host: str) -> str:
        directory = private_dir(self._directory / file_name(order.node))
        sockets = Path(tempfile.gettempdir()) / f"shuntserve-{os.geteuid()}"
        options = AgentOptions(
            order.node,
            order.gpus,
            order.token,
            directory,
            sockets / secrets.token_hex(8),
            host=host,
            device=order.device,
            orphan_seconds=order.orphan_seconds,
            tls_dir=self._identity.certificate.parent,
        )

        def remember(agent: AgentRecord) -> None:
            running = _Running(agent, str(options.run_dir))
            write_private(directory / "agent.json", json.dumps(attrs.asdict(running)))

        return (await self._processes.start(options, remember)).url

    async def _end(self, node: str) -> None:
        file = self._directory / file_name(node) / "agent.json"
        running = self._read(file)
        if running is not None:
            await self._processes.end(running.agent)
            shutil.rmtree(running.run_dir, ignore_errors=True)
        file.unlink(missing_ok=True)

    def _read(self, file: Path) -> _Running | None:
        try:
            running = cattrs.structure(json.loads(file.read_bytes()), _Running)
        except (OSError, ValueError, cattrs.BaseValidationError):
            return None
        return running if running.agent.lives else None


@contextlib.asynccontextmanager
async def _connected(
    session: aiohttp.ClientSession, url: str, **options: Any
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A connection as a machine.  Raises `Refused` where it is not let in."""
    try:
        connection = await session.ws_connect(url, **options)
    except aiohttp.WSServerHandshakeError as error:
        if reason := _REFUSALS.get(error.status):
            raise Refused(reason) from error
        raise
    try:
        yield connection
    finally:
        await connection.close()


def _remembered(file: Path, urls: Sequence[str]) -> tuple[str, ...]:
    """The addresses given, kept for later; without any, those of last time."""
    if urls:
        given = tuple(url.rstrip("/") for url in urls)
        write_private(file, json.dumps(given))
        return given
    try:
        return tuple(cattrs.structure(json.loads(file.read_bytes()), list[str]))
    except (OSError, ValueError, cattrs.BaseValidationError):
        remedy = "give the control plane's address, or a ticket that names it"
        raise UserError("no address to join at", where=str(file), remedy=remedy) from None


def _order_of(text: str) -> Launch | End | None:
    kinds: dict[str, type[Launch] | type[End]] = {"launch": Launch, "end": End}
    try:
        document = parse_json(text)
        kind = kinds[document.pop("kind")]
        return structured(document, kind)
    except (ValueError, KeyError, AttributeError, TypeError, UserError):
        return None


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"it is not the control plane of this cluster: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return (error.os_error.strerror or str(error.os_error)).lower()
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
