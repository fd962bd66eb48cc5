"""Nodes that come and go: launching, notices, deadlines, losses, and finding running ones again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

from shuntserve_core.control_plane.policy import actions as act
from shuntserve_core.control_plane.policy.capacity import gpus_of
from shuntserve_core.control_plane.policy.notices import hear
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.engine import ForkingEngine
from shuntserve_core.interfaces.launcher import AgentAddress, NodeSpec
from shuntserve_core.node.client import AgentLost
from shuntserve_core.runtime.changes import admit
from shuntserve_core.runtime.cluster import RunningCluster
from shuntserve_core.runtime.nodes import Node
from shuntserve_core.runtime.run import EngineFailed, how_it_died
from shuntserve_core.runtime.states import NodeState, PipelineState
from shuntserve_core.runtime.suspects import Cause
from shuntserve_core.runtime.watches import default_notice, watches_of
from shuntserve_core.types.spot import SpotEvent


class Membership:
    """Changes the states of nodes, and wakes the manager up."""

    def __init__(self, cluster: RunningCluster) -> None:
        self._cluster = cluster
        self._watches = watches_of(cluster.config)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By node: an agent must have ended before the next one of that name starts."""

    async def launch(self, name: str) -> None:
        """Start a node's agent and take the node in.  Raises `UserError`; the node is lost then."""
        await self._launch(self._cluster.new_node(name))

    async def _launch(self, node: Node) -> None:
        cluster, name = self._cluster, node.name
        async with self._locks[name]:
            try:
                spec = NodeSpec(name, node.instance, node.gpus)
                await self._take_in(node, await cluster.launcher.launch(spec))
            except (UserError, AgentLost) as error:
                await cluster.launcher.terminate(name)
                self._lost(node, str(error))
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"the agent of {name} does not answer: {error}",
                    remedy="see agent.log in the state directory",
                ) from error

    async def _take_in(self, node: Node, address: AgentAddress) -> dict[str, Any]:
        agent = self._cluster.connect(address)
        described = await agent.describe()
        node.agent = agent
        agent.watch(partial(self._on_agent_event, node), partial(self._on_silence, node))
        await agent.disable_plugins(self._cluster.config.registry.disabled)
        await agent.watch_spot(self._watches)
        if isinstance(self._cluster.settings.engine, ForkingEngine):
            await agent.prepare(self._cluster.settings.engine.template)
        if node.machine.state is NodeState.LOST:
            raise AgentLost("it fell silent while it joined")
        node.machine.to(NodeState.UP, "its agent answers")
        if node.deadline is not None:
            node.machine.to(NodeState.NOTICED, "a notice came while it joined")
        self._cluster.note("node joined", node=node.name)
        return described

    # What is said about nodes

    def on_spot_event(self, event: SpotEvent) -> None:
        """A cloud, a trace or a person says something; it may have been said before."""
        cluster = self._cluster
        if cluster.closing:
            return
        nodes = {name: node.view() for name, node in cluster.nodes.items()}
        offered, default = (
            cluster.config.cluster.catalog,
            default_notice(cluster.config, event.source),
        )
        for action in hear(nodes, event, time.time(), offered, default):
            if isinstance(action, act.Report):
                cluster.note(action.what, **action.facts)
            else:
                self.carry_out(action)

    def carry_out(self, action: act.Action) -> None:
        """Have done what was decided about a node."""
        cluster = self._cluster
        match action:
            case act.Join(name):
                # It is joining from now on, so that a repetition of this changes nothing.
                cluster.spawn(self._join_again(cluster.new_node(name)))
            case act.Notice(name, deadline, enforced):
                self._notice(cluster.nodes[name], deadline, enforced=enforced)
            case act.Withdraw(name):
                self._withdraw(cluster.nodes[name])
            case act.EndNode(name, reason):
                cluster.nodes[name].ending = True
                cluster.spawn(self._end(cluster.nodes[name], reason))
                cluster.wake.set()

    def _notice(self, node: Node, deadline: float, *, enforced: bool) -> None:
        node.deadline, node.enforced = deadline, enforced
        if node.present:
            node.machine.to(NodeState.NOTICED, "it will be taken")
        self._cluster.wake.set()

    def _withdraw(self, node: Node) -> None:
        node.deadline, node.enforced = None, False
        if node.machine.state is NodeState.NOTICED:
            node.machine.to(NodeState.UP, "notice withdrawn")

    async def _join_again(self, node: Node) -> None:
        try:
            await self._launch(node)
        except UserError as error:
            self._cluster.note("node did not come back", node=node.name, reason=str(error))

    async def _end(self, node: Node, reason: str) -> None:
        node.ending = True
        async with self._locks[node.name]:
            await self._cluster.launcher.terminate(node.name)
            self._lost(node, reason)

    # What agents say

    def _on_silence(self, node: Node, reason: str) -> None:
        if node.machine.state is not NodeState.LOST and not self._cluster.closing:
            self._lost(node, reason)
            # Whatever still runs there must not go on behind our back.
            self._cluster.spawn(self._end(node, reason))

    def _lost(self, node: Node, reason: str) -> None:
        if node.machine.state is NodeState.LOST:
            return
        cluster = self._cluster
        cluster.note("node lost", node=node.name, reason=reason)
        node.machine.to(NodeState.LOST, reason)
        node.deadline = None
        for run in list(cluster.runs.values()):
            if node in run.nodes:
                cluster.dispatcher.explain(run.name, Cause.NODE)
                run.fail(f"{node.name} is lost")
        if node.agent is not None:
            cluster.spawn(node.agent.close())

    def _on_agent_event(self, node: Node, event: dict[str, Any]) -> None:
        if event["event"] == "store-exit":
            self._store_ended(node, int(event["gpu"]), how_it_died(node.name, event))
        elif event["event"] == "spot":
            self.on_spot_event(SpotEvent(**event["spot"]))
        elif event["event"] == "spot-failed":
            facts = {"source": event["source"], "reason": event["reason"]}
            self._cluster.note("spot source failed", node=node.name, **facts)
        else:
            for run in self._cluster.runs.values():
                if run.engine_id == event.get("engine_id"):
                    run.on_worker_event(node.name, event)

    def _store_ended(self, node: Node, gpu: int, reason: str) -> None:
        """Engines keep what they have mapped, but no further engine can start beside them."""
        node.held.pop(gpu, None)
        self._cluster.note("tensor store ended", node=node.name, gpu=gpu, reason=reason)
        for run in self._cluster.runs.values():
            if run.live and (node.name, gpu) in gpus_of(run.plan):
                run.fault = run.fault or f"the tensor store of {node.name}, GPU {gpu}, ended"
        self._cluster.wake.set()

    # A control plane that comes back

    async def adopt(self, addresses: Sequence[AgentAddress]) -> None:
        """Go on with the nodes and engines that an earlier control plane left."""
        parts: dict[str, dict[str, dict[str, Any]]] = {}
        for address in addresses:
            node = self._cluster.new_node(address.node)
            try:
                described = await self._take_in(node, address)
            except (AgentLost, UserError) as error:
                self._on_silence(node, str(error))
                continue
            for engine in described["engines"]:
                parts.setdefault(engine["engine_id"], {})[node.name] = engine
        await asyncio.gather(*(self._adopt_engine(e, there) for e, there in parts.items()))

    async def _adopt_engine(self, engine_id: str, parts: dict[str, dict[str, Any]]) -> None:
        memory = next(iter(parts.values()))["launch"]
        address = next((part["address"] for part in parts.values() if part["address"]), "")
        healthy = all(part["alive"] and part["ready"] for part in parts.values())
        whole = address and healthy and set(memory["nodes"]) == set(parts)
        run = self._cluster.remembered_run(memory) if whole else None
        if run is None:
            reason = "it belongs to another configuration" if whole else "it is not whole"
            self._cluster.note("engine not adopted", engine=engine_id, reason=reason)
            await self._stop_parts(engine_id, parts)
            return
        try:
            await run.reconnect(address)
        except EngineFailed as error:
            self._cluster.note("engine not adopted", engine=engine_id, reason=str(error))
            await run.stop(str(error))
            return
        if run.state is PipelineState.SERVING:
            self._cluster.note("engine adopted", pipeline=run.name)
            admit(self._cluster, run)

    async def _stop_parts(self, engine_id: str, parts: dict[str, dict[str, Any]]) -> None:
        for name in parts:
            agent = self._cluster.nodes[name].agent
            if agent is not None:
                with contextlib.suppress(AgentLost):
                    await agent.stop_engine(engine_id, 0.0)
