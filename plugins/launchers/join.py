"""Nodes on machines that come by themselves: started by hand, by systemd, Kubernetes or a cloud.

Each runs `shuntserve node join` and dials this launcher, which says which node it is to be.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp
from attrs import define, field, frozen
from attrs.validators import gt, in_

from shuntserve_core.errors import UserError
from shuntserve_core.files import file_name, private_dir, write_private
from shuntserve_core.interfaces.launcher import AgentAddress, NodeSpec, PeerTls
from shuntserve_core.joining.desk import Desk, Machine, MachineLost
from shuntserve_core.joining.messages import End, Launch
from shuntserve_core.surfaces import AGENTS, ENGINES, JOINING, RANKS, STORES
from shuntserve_core.trust.authority import Authority, machine_name
from shuntserve_core.trust.tickets import Ticket, TicketBook

_START_SECONDS = 90.0
_END_SECONDS = 15.0
_REACH_SECONDS = 3.0
_SHUTDOWN = aiohttp.ClientTimeout(total=_REACH_SECONDS)


@frozen
class _Known:
    """Where a node's agent is."""

    machine: str
    url: str
    token: str
    host: str


@define
class JoinLauncher:
    """Machines dial; each that waits may become a node of its instance type."""

    listen: str = "127.0.0.1:7443"
    """Address and port at which machines join; another than loopback for other machines."""
    advertise: tuple[str, ...] = ()
    """Addresses that tickets name, as `https://HOST:PORT`; by default the one listened on."""
    device: str = field(default="cuda", validator=in_(("cpu", "cuda")))
    """`cpu`, or `cuda` to give each node its machine's GPUs."""
    join_seconds: float = field(default=60.0, validator=gt(0))
    """Seconds that a machine with a node's instance type may take to appear."""
    orphan_seconds: float = field(default=600.0, validator=gt(0))
    """Seconds after which an agent without a control plane ends."""

    address: tuple[str, int] = field(init=False, default=("", 0))
    """Where it listens, once it is open."""
    _state_dir: Path = field(init=False, factory=Path)
    _desk: Desk | None = field(init=False, default=None)
    _authority: Authority | None = field(init=False, default=None)
    _nodes: dict[str, _Known] = field(init=False, factory=dict)
    _lock: asyncio.Lock = field(init=False, factory=asyncio.Lock)

    async def open(self, state_dir: Path) -> None:
        """Listen for machines.  Raises `UserError`."""
        self._remember(state_dir)
        assert self._authority is not None
        host, port = _address(self.listen)
        book = TicketBook(state_dir / "tickets")
        self._desk = Desk(state_dir / "machines", self._authority, book, self._nodes.keys)
        self.address = await self._desk.start(host, port)

    def _remember(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._authority = Authority(state_dir / "trust", state_dir.name)
        for file in sorted((state_dir / "nodes").glob("*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                self._nodes[unquote(file.stem)] = _Known(**json.loads(file.read_text()))

    def make_ticket(self, state_dir: Path, instance: str, seconds: float, uses: int) -> Ticket:
        """A ticket for machines of one type; the control plane need not run."""
        authority = Authority(state_dir / "trust", state_dir.name)
        return TicketBook(state_dir / "tickets").make(
            cluster=state_dir.name,
            instance=instance,
            urls=self.advertise or (f"https://{self.listen}",),
            authority=authority.certificate,
            seconds=seconds,
            uses=uses,
        )

    def vacancies(self) -> Mapping[str, int]:
        """How many machines of each type wait to be a node."""
        return self._desk.waiting() if self._desk is not None else {}

    async def launch(self, node: NodeSpec) -> AgentAddress:
        """Have a machine of the node's type be it; waits for one.  Raises `UserError`."""
        desk = self._running()
        before = self._nodes.get(node.name)
        await self.terminate(node.name)
        token = secrets.token_urlsafe(32)
        try:
            async with asyncio.timeout(self.join_seconds):
                machine = await self._take(desk, node, before.machine if before else "")
        except TimeoutError:
            raise UserError(
                f"no machine of type {node.instance} waits to be {node.name}",
                where="launcher",
                remedy=f"have one join: shuntserve ticket CONFIG {node.instance}",
            ) from None
        order = Launch(
            desk.next_order(), node.name, node.gpus, token, self.device, self.orphan_seconds
        )
        try:
            answer = await machine.order(order, _START_SECONDS)
            if answer.error:
                raise UserError(answer.error, where=f"machine {machine.id}")
        except BaseException as error:
            machine.node = ""
            await desk.changed()
            if isinstance(error, MachineLost):
                raise UserError(str(error), where=node.name) from error
            raise
        known = _Known(machine.id, answer.url, token, machine.hello.host)
        self._nodes[node.name] = known
        write_private(self._file(node.name), json.dumps(_plain(known)))
        return self._reached(node.name, known)

    async def _take(self, desk: Desk, node: NodeSpec, last: str) -> Machine:
        """A waiting machine: the one that was this node last has its weights."""

        def waits(machine: Machine) -> bool:
            return not machine.node

        while True:
            machine = await desk.find(node.instance, waits, lambda m: (m.id != last, m.id))
            async with self._lock:
                if not machine.node and desk.machines.get(machine.id) is machine:
                    machine.node = node.name
                    return machine

    async def adopt(self) -> list[AgentAddress]:
        """Agents of an earlier control plane that answer where they were."""
        known = dict(self._nodes)
        answer = await asyncio.gather(*(self._answers(one) for one in known.values()))
        for name, there in zip(known, answer, strict=True):
            if not there:
                self._forget(name)
        return [self._reached(name, one) for name, one in known.items() if name in self._nodes]

    async def _answers(self, known: _Known) -> bool:
        url, tls = urlsplit(known.url), self._tls(known)
        with contextlib.suppress(OSError, TimeoutError, ssl.SSLError):
            async with asyncio.timeout(_REACH_SECONDS):
                _, writer = await asyncio.open_connection(
                    url.hostname, url.port, ssl=tls.context, server_hostname=tls.name
                )
            writer.close()
            return True
        return False

    async def terminate(self, node: str) -> None:
        """End a node's agent; a machine that cannot be reached is told when it comes back."""
        known = self._nodes.get(node)
        self._forget(node)
        desk = self._running()
        machines = [machine for machine in desk.machines.values() if machine.node == node]
        for machine in machines:
            with contextlib.suppress(MachineLost):
                await machine.order(End(desk.next_order(), node), _END_SECONDS)
            machine.node = ""
            await desk.changed()
        if known is not None and not machines:
            await self._shut_down(known)

    async def _shut_down(self, known: _Known) -> None:
        """Ask the agent itself: its machine has not dialled again yet."""
        tls = self._reached("", known).tls_options
        async with aiohttp.ClientSession(timeout=_SHUTDOWN) as session:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                await session.post(
                    f"{known.url}/v1/shutdown",
                    json={},
                    headers={"Authorization": f"Bearer {known.token}"},
                    **tls,
                )

    async def close(self) -> None:
        """Stop listening; machines dial on until there is a control plane again."""
        if self._desk is not None:
            await self._desk.close()

    def security_posture(self) -> list[str]:
        """Where machines join, and what listens on them."""
        own = "each machine's own address; use a private network"
        asks = "TLS; certificates of the cluster on both sides, and a secret each"
        return [
            JOINING.line(self.listen),
            AGENTS.line(own, asks, "another machine of the cluster may connect, not give orders"),
            *(one.line(own) for one in (ENGINES, RANKS)),
            STORES.line(),
        ]

    def _running(self) -> Desk:
        if self._desk is None:
            raise RuntimeError("the launcher is not open")
        return self._desk

    def _tls(self, known: _Known) -> PeerTls:
        assert self._authority is not None
        return PeerTls(self._authority.identity().client(), machine_name(known.machine))

    def _reached(self, node: str, known: _Known) -> AgentAddress:
        return AgentAddress(node, known.url, known.token, known.host, self._tls(known))

    def _file(self, node: str) -> Path:
        return private_dir(self._state_dir / "nodes") / f"{file_name(node)}.json"

    def _forget(self, node: str) -> None:
        self._nodes.pop(node, None)
        self._file(node).unlink(missing_ok=True)


def _plain(known: _Known) -> dict[str, str]:
    return {
        "machine": known.machine,
        "url": known.url,
        "token": known.token,
        "host": known.host,
    }


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 65536):
        raise UserError(
            f"{text!r} is no address", where="launcher.listen", remedy="write HOST:PORT"
        )
    return host.strip("[]"), int(port)
