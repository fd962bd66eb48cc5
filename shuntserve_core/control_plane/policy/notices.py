"""What a word about a node changes: sources repeat themselves, and may be wrong."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from shuntserve_core.control_plane.policy.actions import (
    Action,
    EndNode,
    Join,
    Notice,
    Report,
    Withdraw,
)
from shuntserve_core.control_plane.policy.states import NodeState
from shuntserve_core.control_plane.policy.view import NodeView
from shuntserve_core.types.spot import SpotEvent

DEFAULT_NOTICE = 120.0
"""Seconds that a notice without a deadline is taken to leave: what AWS documents."""


def hear(
    nodes: Mapping[str, NodeView],
    event: SpotEvent,
    now: float,
    offered: Collection[str],
    default_notice: float = DEFAULT_NOTICE,
) -> tuple[Action, ...]:
    """What follows from an event at once; what follows from that is decided by `decide`.

    `now` and all deadlines are on one clock.  `offered` are the instance types of the cluster.
    """
    actions: list[Action] = []
    for name in named(nodes, event.node):
        node = nodes.get(name)
        if node is None or node.state is NodeState.LOST:
            actions += _of_absent(name, event, offered)
        else:
            actions += _of_present(node, event, now, default_notice)
    return tuple(actions)


def named(nodes: Mapping[str, NodeView], name: str) -> list[str]:
    """The nodes that an event is about: all of a type, where it names only the type."""
    if name in nodes or "#" in name:
        return [name]
    return [node.name for node in nodes.values() if node.instance == name]


def _of_absent(name: str, event: SpotEvent, offered: Collection[str]) -> list[Action]:
    if event.kind != "restored":
        return []
    if name.rpartition("#")[0] not in offered:
        return [Report("restored node is of no offered type", {"node": name})]
    return [Report("restored", {"node": name, "source": event.source}), Join(name)]


def _of_present(
    node: NodeView, event: SpotEvent, now: float, default_notice: float
) -> list[Action]:
    facts = {"node": node.name, "source": event.source}
    match event.kind:
        case "notice":
            return _notice(node, event, now, default_notice)
        case "withdrawn" | "restored" if node.deadline is not None:
            said = [Report("notice withdrawn", facts)] if node.present else []
            return [*said, Withdraw(node.name)]
        case "lost":
            return [EndNode(node.name, f"lost without notice ({event.source})")]
        case "rebalance":
            return [Report("rebalance recommended", facts)]
    return []


def _notice(node: NodeView, event: SpotEvent, now: float, default_notice: float) -> list[Action]:
    """Only the first notice and an earlier deadline are news."""
    deadline = now + default_notice if event.deadline is None else event.deadline
    known = node.deadline is not None
    if known and (event.deadline is None or deadline >= (node.deadline or 0.0)):
        return []
    seconds = round(deadline - now, 1)
    facts = {"node": node.name, "seconds": seconds, "source": event.source}
    enforced = node.enforced or event.enforced
    return [Report("interruption notice", facts), Notice(node.name, deadline, enforced)]
