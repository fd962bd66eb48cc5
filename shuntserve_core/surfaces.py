"""Every place at which others can reach a cluster: what `serve` prints, and the manual's table.

A test lists what the processes of a running cluster listen on, and compares it with this.
"""

from __future__ import annotations

from attrs import frozen


@frozen
class Surface:
    """One kind of listener."""

    name: str
    where: str
    """Where it listens if nothing else is configured."""
    asks: str
    """What it wants of whoever connects."""
    leaves: str
    """What nothing protects there."""

    def line(self, where: str = "", asks: str = "", leaves: str = "") -> str:
        """As `serve` prints it; what is given is for a cluster in which that is another."""
        return f"{self.name}: {where or self.where}; {asks or self.asks}; {leaves or self.leaves}"


FRONT_DOOR = Surface(
    "front door", "127.0.0.1", "API keys, TLS, both if configured", "what its warnings name"
)
CONTROL = Surface("control", "127.0.0.1", "a secret", "plain HTTP")
AGENTS = Surface("node agents", "127.0.0.1", "a secret each", "plain HTTP")
STORES = Surface(
    "tensor stores",
    "Unix sockets in a directory of this user alone",
    "the same user, by the kernel",
    "root can read all memory",
)
ENGINES = Surface("engines", "127.0.0.1", "links want a secret", "no encryption")
RANKS = Surface(
    "ranks of an engine",
    "127.0.0.1",
    "they meet by a secret on both sides",
    "vLLM's collectives (gloo, NCCL) want none; objects there are read as data; no encryption",
)
RAY = Surface(
    "Ray",
    "many ports on all interfaces of every machine",
    "a token (RAY_AUTH_MODE=token)",
    "its metrics; its folder in /tmp, where all users may write; no TLS unless it has certificates",
)
JOINING = Surface(
    "joining",
    "nothing unless `launcher.name` is `join`; then 127.0.0.1:7443",
    "TLS; a ticket once, then a certificate of the cluster's own authority",
    "whoever has a ticket that is valid may join; tickets expire and are counted",
)
SURFACES = (FRONT_DOOR, CONTROL, AGENTS, STORES, ENGINES, RANKS, RAY, JOINING)


def table() -> str:
    """All of them as a table in Markdown."""
    head = "| Surface | Where, unless configured | Asks for | Not protected |\n|---|---|---|---|\n"
    return head + "".join(
        f"| {one.name} | {one.where} | {one.asks} | {one.leaves} |\n" for one in SURFACES
    )
