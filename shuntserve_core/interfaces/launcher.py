"""How node agents come to be."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import field, frozen

if TYPE_CHECKING:
    from shuntserve_core.trust.tickets import Ticket


@frozen
class NodeSpec:
    """A node that should exist."""

    name: str
    """`<instance type>#<number>`."""
    instance: str
    gpus: int


@frozen
class PeerTls:
    """How somebody is spoken to over TLS."""

    context: ssl.SSLContext = field(eq=False)
    name: str
    """The one that must stand in the other side's certificate."""


@frozen
class AgentAddress:
    """Where a node's agent listens, and the secret that it wants to hear."""

    node: str
    url: str
    token: str
    host: str
    """Address by which other nodes reach this one."""
    tls: PeerTls | None = None
    """Where the URL is one of `https`."""

    @property
    def tls_options(self) -> dict[str, Any]:
        """What aiohttp's requests to it take."""
        if self.tls is None:
            return {}
        return {"ssl": self.tls.context, "server_hostname": self.tls.name}


class Launcher(Protocol):
    """Starts and ends node agents; its attrs fields are the options of the `[launcher]` table."""

    async def open(self, state_dir: Path) -> None:
        """Called once, before anything else, with a directory for what must outlive us."""
        ...

    async def launch(self, node: NodeSpec) -> AgentAddress:
        """Start an agent and wait until it answers.  Raises `UserError` where it cannot."""
        ...

    async def adopt(self) -> list[AgentAddress]:
        """Agents that an earlier control plane left running."""
        ...

    def security_posture(self) -> list[str]:
        """Every surface that nodes open, and how to close it, one line each."""
        ...

    async def terminate(self, node: str) -> None:
        """End a node: its agent and everything it started.  Unknown nodes are ignored."""
        ...


@runtime_checkable
class LocalNodes(Protocol):
    """A launcher whose nodes are on the machine that the control plane runs on."""

    def trouble(self, gpus: int) -> str:
        """Why nodes with so many GPUs cannot be here, on one line; nothing if they can."""
        ...


@runtime_checkable
class ListeningLauncher(Protocol):
    """A launcher that has something to close when the control plane ends in good order."""

    async def close(self) -> None:
        """Called last, after every node has been ended."""
        ...


@runtime_checkable
class TicketLauncher(Protocol):
    """A launcher whose machines come with tickets: see `shuntserve ticket`."""

    def make_ticket(self, state_dir: Path, instance: str, seconds: float, uses: int) -> Ticket:
        """A ticket for so many machines of one type, for so long; nothing need run."""
        ...
