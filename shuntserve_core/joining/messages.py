"""What a machine and the control plane say to one another: JSON, each message one of these."""

from __future__ import annotations

from typing import Any

from attrs import asdict, field, frozen

from shuntserve_core._version import __version__

LONGEST = 64 * 1024
"""Bytes of a message, and of what a stranger may send."""
HEARTBEAT_SECONDS = 2.0
"""How often either side asks whether the other is there; twice that without an answer is a loss."""


@frozen
class Enrolment:
    """What a machine without a certificate asks."""

    ticket: str
    secret: str
    request: str
    """Certificate signing request, PEM."""
    version: str = __version__


@frozen
class Enrolled:
    """What it is answered."""

    machine: str
    instance: str
    certificate: str


@frozen
class Hello:
    """What a machine says first on each connection."""

    version: str
    host: str
    """The address by which other machines reach it: the one that it dials from, unless told."""
    hostname: str
    boot_id: str
    instance_id: str = ""
    """The cloud's name for it, where it knows."""
    zone: str = ""
    nodes: tuple[str, ...] = ()
    """Nodes whose agents run here."""


@frozen
class Launch:
    """Start the agent of a node, in the place of any other that runs here."""

    order: int
    node: str
    gpus: int
    token: str
    device: str
    orphan_seconds: float
    kind: str = field(default="launch", init=False)


@frozen
class End:
    """End the agent of a node, with everything that it started."""

    order: int
    node: str
    kind: str = field(default="end", init=False)


@frozen
class Answer:
    """What became of an order."""

    order: int
    url: str = ""
    """Of the agent that was started."""
    error: str = ""


def plain(message: Any) -> dict[str, Any]:
    """As JSON takes it."""
    return asdict(message)
