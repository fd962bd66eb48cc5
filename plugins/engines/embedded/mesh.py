"""What ranks pass to each other within a step: parts of a stage's rows, and hidden states.

Plain sockets between the processes that need one, each proved like those of `control`.  On few
cores this beats a general library for collectives, whose helper threads cost a switch of context
for each hop; and there is one thing here that it has not, a proof of who connects.  What a GPU
computes passes through host memory.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shuntserve_core.interfaces.engine import EngineLaunch
from shuntserve_plugins.engines.arrivals import PeerListener
from shuntserve_plugins.engines.embedded.group import Alone, Group
from shuntserve_plugins.engines.peers import connect, receive_into, send_bytes

_PURPOSE = "mesh"
_EAGER_BYTES = 48 << 10
"""A part up to this size fits twice into a socket's buffer, so that sending never waits."""


class Layout:
    """Which ranks talk to which."""

    def __init__(self, launch: EngineLaunch, rank: int) -> None:
        stages = [
            [index for index, one in enumerate(launch.ranks) if one.stage == stage]
            for stage in range(len(launch.layers))
        ]
        stage = launch.ranks[rank].stage
        self.rank = rank
        self.ours = stages[stage]
        """Ranks of our stage."""
        self.source: int | None = None
        """Who sends us hidden states."""
        self.targets: list[int] = []
        """To whom we send them.  Every rank of a stage has the same, so any may send."""
        if stage > 0:
            self.source = _sender(stages[stage - 1], self.ours.index(rank))
        if stage + 1 < len(stages):
            after = stages[stage + 1]
            self.targets = [to for i, to in enumerate(after) if _sender(self.ours, i) == rank]

    @property
    def peers(self) -> set[int]:
        """All that this rank is connected to."""
        before = set() if self.source is None else {self.source}
        return (set(self.ours) | set(self.targets) | before) - {self.rank}


def _sender(before: Sequence[int], index: int) -> int:
    return before[index % len(before)]


def meet(
    layout: Layout,
    listener: PeerListener,
    addresses: Mapping[int, str],
    token: str,
    hidden: int,
    device: torch.device | str = "cpu",
) -> tuple[Group, Pipe]:
    """Connect to this rank's peers: the higher rank connects.  Every rank must call it."""
    sockets = {
        peer: connect(addresses[peer], token, layout.rank, _PURPOSE)
        for peer in layout.peers
        if peer < layout.rank
    }
    higher = listener.accept([(peer, _PURPOSE) for peer in layout.peers if peer > layout.rank])
    sockets |= {peer: sock for (peer, _), sock in higher.items()}
    others = {peer: sockets[peer] for peer in sorted(layout.ours) if peer != layout.rank}
    group: Group = Collective(layout.rank, others) if others else Alone()
    source = None if layout.source is None else sockets[layout.source]
    return group, Pipe(source, [sockets[target] for target in layout.targets], hidden, device)


class Collective:
    """The ranks of a stage."""

    def __init__(self, rank: int, others: Mapping[int, socket.socket]) -> None:
        order = sorted([rank, *others])
        self.size, self.rank = len(order), order.index(rank)
        self._others = [(order.index(other), sock) for other, sock in others.items()]

    def gather(self, part: Tensor) -> Tensor:
        """Every rank's tensor of this shape, stacked in the order of ranks."""
        together = part.new_empty(self.size, *part.shape)
        together[self.rank] = part
        if together.device.type != "cpu":
            return self._exchange(together.cpu()).to(together.device)
        return self._exchange(together)

    def _exchange(self, together: Tensor) -> Tensor:
        """Fill in what the others have, in host memory."""
        ours = _bytes(together[self.rank])
        if len(ours) <= _EAGER_BYTES:
            for _, sock in self._others:
                send_bytes(sock, ours)
            for other, sock in self._others:
                receive_into(sock, _bytes(together[other]))
            return together
        # Pair by pair, in an order that is the same for all ranks: none waits in a circle.
        for other, sock in self._others:
            if self.rank < other:
                send_bytes(sock, ours)
                receive_into(sock, _bytes(together[other]))
            else:
                receive_into(sock, _bytes(together[other]))
                send_bytes(sock, ours)
        return together


class Pipe:
    """The neighbouring stages."""

    def __init__(
        self,
        source: socket.socket | None,
        targets: Sequence[socket.socket],
        hidden: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._source, self._targets, self._hidden = source, targets, hidden
        self._device = torch.device(device)

    def receive(self, rows: int) -> Tensor:
        """Hidden states of the stage before: (rows, hidden)."""
        assert self._source is not None
        hidden = torch.empty(rows, self._hidden)
        receive_into(self._source, _bytes(hidden))
        return hidden.to(self._device)

    def send(self, hidden: Tensor) -> None:
        """Pass hidden states on to the stage after."""
        data = _bytes(hidden.contiguous().cpu())
        for target in self._targets:
            send_bytes(target, data)


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.numpy().data.cast("B")
