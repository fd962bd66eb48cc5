"""One engine from its first byte of weights to its last process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import cattrs

from shuntserve_core.control_plane.policy.capacity import Held, nodes_of
from shuntserve_core.control_plane.policy.view import PipelineView
from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.engine import EngineLaunch
from shuntserve_core.interfaces.link import READY, STANDBY, EngineLink, LinkLost
from shuntserve_core.link import LinkClient, LinkPolicy
from shuntserve_core.node.client import AgentLost
from shuntserve_core.node.logs import ended_how
from shuntserve_core.placement_json import pipeline_from_json, pipeline_to_json
from shuntserve_core.runtime.launches import EngineSettings, engine_launch, on_gpus
from shuntserve_core.runtime.nodes import Node
from shuntserve_core.runtime.states import COMING, LIVE, Machine, NodeState, PipelineState
from shuntserve_core.runtime.suspects import Cause
from shuntserve_core.runtime.switching import MAPPING, MEMORY, Switch
from shuntserve_core.tensorstore.spec import ShardSpec
from shuntserve_core.types import Pipeline

logger = logging.getLogger(__name__)


PATIENCE = LinkPolicy(interval=0.25, missed=12)
"""An engine that hangs counts as dead after three seconds: on a machine that starts other engines
it may well be silent for one.  The end of one is detected at once."""
DEATH_SECONDS = 0.5
"""How long a lost link waits for the node to say which process ended, and of what; requests have
gone elsewhere by then."""


def how_it_died(node: str, event: Mapping[str, Any]) -> str:
    """The end of a worker or tensor store in a line, and below it the last lines of its log."""
    words = event.get("last_words", [])
    end = f"; the end of its log, {event['log']}:" if words else ""
    head = f"{event.get('who', 'a worker')} on {node} {ended_how(int(event['code']))}{end}"
    return "\n    ".join([head, *words])


class EngineFailed(Exception):
    """The engine will not serve; the message says why."""


def launch_of(memory: Mapping[str, Any]) -> EngineLaunch:
    """What an engine was told, from what its agents remember."""
    return cattrs.structure(memory["launch"], EngineLaunch)


class PipelineRun:
    """A pipeline on its GPUs.  The manager decides; this carries out."""

    def __init__(
        self,
        plan: Pipeline,
        nodes: Mapping[str, Node],
        settings: EngineSettings,
        machine: Machine[PipelineState],
    ) -> None:
        self.plan = plan
        self.machine = machine
        self.name = machine.name
        self.engine_id = f"{machine.name}-{secrets.token_hex(4)}"
        self.link: EngineLink | None = None
        self.on_failed: Callable[[PipelineRun, str], None] | None = None
        """Called once, with the reason, when the engine will not serve any more."""
        self.on_gone: Callable[[], None] = lambda: None
        """Called when no process of it is left."""
        self.fault = ""
        """Why it must be replaced although it serves and its nodes stay; empty if it need not."""
        self.gone = asyncio.Event()
        """Set when no process of it is left on any node that answers."""
        self.started = time.time()
        self.serving_since: float | None = None
        self.switch_seconds: float | None = None
        """How long the GPUs served nobody at the switch to this engine."""
        self.switch: Switch | None = None
        """What the switch to this engine took, if it took over from one that served."""
        self.copied_bytes = 0
        """Of its weights, what its workers said that they had to copy."""
        self.working_bytes = 0
        """What the neediest of its workers measured that it takes while it computes; 0: unknown."""
        self._nodes = {name: nodes[name] for name in nodes_of(plan)}
        self._settings = settings
        self._launched: EngineLaunch | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._token = secrets.token_urlsafe(24)
        self._address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._ready: set[tuple[str, int]] = set()
        self._workers: set[tuple[str, int]] = set()
        self._all_ready = asyncio.Event()

    @property
    def state(self) -> PipelineState:
        """Where in its life it is."""
        return self.machine.state

    @property
    def live(self) -> bool:
        """Whether it has processes that are wanted."""
        return self.state in LIVE

    @property
    def coming(self) -> bool:
        """Whether it is on its way to serving."""
        return self.state in COMING

    @property
    def serves(self) -> bool:
        """Whether requests may go to it."""
        return self.state is PipelineState.SERVING

    @property
    def leaving(self) -> str:
        """Why it cannot stay as it is; empty if it can."""
        going = sorted(node.name for node in self._nodes.values() if not node.usable)
        return self.fault or (f"loses {', '.join(going)}" if going else "")

    @property
    def cause(self) -> Cause:
        """Why it failed, as far as its nodes tell: one of them, or that is not known."""
        going = any(node.goes for node in self._nodes.values())
        return Cause.NODE if going else Cause.UNKNOWN

    @property
    def on_firm_ground(self) -> bool:
        """Whether all its nodes are there, and nobody is ending one."""
        return all(node.present and not node.ending for node in self._nodes.values())

    def view(self, ahead: float) -> PipelineView:
        """What a decision may know of it, on a clock so many seconds ahead of the epoch's."""
        lost = {name for name, node in self._nodes.items() if node.machine.state is NodeState.LOST}
        since = self.serving_since
        return PipelineView(
            self.name,
            self.plan,
            self.state,
            frozenset(lost),
            self.fault,
            None if since is None else since + ahead,
            self.gone.is_set(),
            self.kv_bytes,
        )

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes that it needs, as they were when it was planned."""
        return tuple(self._nodes.values())

    @property
    def node_names(self) -> frozenset[str]:
        """Their names."""
        return frozenset(self._nodes)

    @property
    def capacity(self) -> int:
        """Requests that it runs at once."""
        return self._settings.batch_of(self.plan)

    @property
    def kv_bytes(self) -> int:
        """KV memory that it needs on the GPU that needs most."""
        return self._settings.kv_bytes_of(self.plan, on_gpus=on_gpus(self.plan, self._nodes))

    # Coming up

    async def prepare(self) -> None:
        """Load weights, start workers, and wait until the engine stands by.

        Raises `EngineFailed`, also where `fail` or `stop` is called in the meantime.
        """
        if not self.live:
            raise EngineFailed("no longer wanted")
        self._preparing = asyncio.create_task(self._prepare())
        try:
            await self._preparing
        except asyncio.CancelledError:
            if self.live:
                raise
            raise EngineFailed("no longer wanted") from None

    async def _prepare(self) -> None:
        try:
            launch = self._launched = await self._make_launch()
            if self._settings.engine.needs_weights:
                await asyncio.gather(*(self._load(launch, i) for i in range(len(launch.ranks))))
            self.machine.to(PipelineState.STARTING, "weights loaded")
            async with asyncio.timeout(self._settings.start_seconds):
                await self._start_workers(launch)
                await self._connect(await self._address)
                await self._all_ready.wait()
                await self._stand_by()
        except TimeoutError:
            raise EngineFailed(f"not ready after {self._settings.start_seconds:.0f} s") from None
        except LinkLost as error:
            await asyncio.sleep(DEATH_SECONDS)  # `fail` ends this, where the node knows more
            raise EngineFailed(str(error)) from error
        except AgentLost as error:
            raise EngineFailed(str(error)) from error
        self.machine.to(PipelineState.STANDBY, "engine stands by")

    async def _make_launch(self) -> EngineLaunch:
        head = self._nodes[self.plan.stages[0].node]
        assert head.agent is not None
        rendezvous = f"{head.agent.address.host}:{await head.agent.free_port()}"
        return engine_launch(
            self.engine_id, self._token, self.plan, self._nodes, self._settings, rendezvous
        )

    async def _load(self, launch: EngineLaunch, index: int) -> None:
        rank, spec = launch.ranks[index], launch.shard(index)
        node = self._nodes[rank.node]
        assert node.agent is not None
        report = await node.agent.load_shard(rank.gpu, spec)
        node.held[rank.gpu] = Held(spec.tp, spec.rank, range(spec.start, spec.stop))
        node.weights_read += int(report["bytes_read"])

    async def _start_workers(self, launch: EngineLaunch) -> None:
        commands = self._settings.engine.workers(launch)
        for name, node in self._nodes.items():
            own = [command for command in commands if command.node == name]
            self._workers |= {(name, index) for index in range(len(own))}
            assert node.agent is not None
            await node.agent.start_engine(self.engine_id, own, self._memory(launch))

    def _memory(self, launch: EngineLaunch) -> dict[str, Any]:
        """What a later control plane needs in order to adopt this engine."""
        return {
            "name": self.name,
            "nodes": sorted(self.node_names),
            "plan": pipeline_to_json(self.plan),
            "launch": cattrs.unstructure(launch),
        }

    def shards_on(self, node: str, gpu: int) -> list[ShardSpec]:
        """What it needs the tensor store of a GPU to hold."""
        if self._launched is None or not self._settings.engine.needs_weights:
            return []
        return [
            self._launched.shard(index)
            for index, rank in enumerate(self._launched.ranks)
            if (rank.node, rank.gpu) == (node, gpu)
        ]

    def on_worker_event(self, node: str, event: Mapping[str, Any]) -> None:
        """A worker said something, or ended."""
        kind, worker = event["event"], (node, int(event["worker"]))
        if kind == "listening" and not self._address.done():
            self._address.set_result(str(event["address"]))
        elif kind == "ready":
            self._ready.add(worker)
            self.copied_bytes += int(event.get("weights", {}).get("copied", 0))
            self.working_bytes = max(self.working_bytes, int(event.get("working_bytes", 0)))
            if self._ready >= self._workers:
                self._all_ready.set()
        elif kind == "active" and self.switch is not None:
            self.switch.took(MEMORY, float(event["waited"]))
            self.switch.took(MAPPING, float(event["mapped"]))
        elif kind == "failed" and self.live:
            self.fail(f"{event.get('who', 'a worker')} on {node}: {event['reason']}")
        elif kind == "exit" and self.live:
            self.fail(how_it_died(node, event))

    async def _connect(self, address: str) -> None:
        link = await LinkClient.connect(address, self._token, PATIENCE)
        if link.info.engine_id != self.engine_id:
            link.close()
            raise EngineFailed(f"another engine answers at {address}")
        self.link = link
        link.on_lost(self._on_link_lost)

    def _on_link_lost(self, reason: str) -> None:
        if self.link is not None:  # else we have closed it
            loop = asyncio.get_running_loop()
            loop.call_later(DEATH_SECONDS, self.fail, f"link lost: {reason}")

    async def _stand_by(self) -> None:
        assert self.link is not None
        announced = asyncio.Event()
        self.link.on_state(lambda _: announced.set())
        while self.link.state not in (STANDBY, READY):
            announced.clear()
            await announced.wait()

    async def activate(self) -> None:
        """Own the KV memory and serve.  Raises `EngineFailed`."""
        assert self.link is not None
        self.machine.to(PipelineState.ACTIVATING, "its GPUs are free")
        try:
            async with asyncio.timeout(self._settings.start_seconds):
                await self.link.activate()
        except TimeoutError:
            raise EngineFailed("it never came to own its KV memory") from None
        except LinkLost as error:
            await asyncio.sleep(DEATH_SECONDS)  # the node may know more
            raise EngineFailed(str(error)) from error
        if self.state is not PipelineState.ACTIVATING:
            raise EngineFailed(f"{self.state} while activating")
        self.serving_since = time.time()
        self.machine.to(PipelineState.SERVING, "engine is ready")

    # Going away

    def fail(self, reason: str) -> None:
        """Note that the engine has failed, once; whoever waits for it is told."""
        if not self.live:
            return
        self.machine.to(PipelineState.FAILED, reason)
        self._end_waiting()
        if self.on_failed is not None:
            self.on_failed(self, reason)

    def _end_waiting(self) -> None:
        if self._preparing is not None and not self._preparing.done():
            self._preparing.cancel()

    async def stop(self, reason: str, grace: float = 0.0) -> bool:
        """End every process of this engine, wherever its node still answers; whether all did."""
        self.machine.to(PipelineState.STOPPED, reason)
        self._end_waiting()
        self.close_link()
        try:
            answers = (self._stop_on(node, grace) for node in self._nodes.values())
            return all(await asyncio.gather(*answers))
        finally:
            self.gone.set()
            self.on_gone()

    def close_link(self) -> None:
        """Close the link."""
        link, self.link = self.link, None
        if link is not None:
            link.close()

    async def _stop_on(self, node: Node, grace: float) -> bool:
        if node.agent is None or not node.present:
            return False
        with contextlib.suppress(UserError):
            try:
                await node.agent.stop_engine(self.engine_id, grace)
            except AgentLost:
                return False
        return True

    # A control plane that comes back

    @classmethod
    def remember(
        cls,
        memory: Mapping[str, Any],
        nodes: Mapping[str, Node],
        settings: EngineSettings,
        machine: Machine[PipelineState],
    ) -> PipelineRun:
        """An engine that an earlier control plane left running."""
        run = cls(pipeline_from_json(memory["plan"]), nodes, settings, machine)
        run._launched = launch = launch_of(memory)
        run.engine_id, run._token = launch.engine_id, launch.link_token
        for index, rank in enumerate(launch.ranks):
            shard = launch.shard(index)
            held = Held(shard.tp, shard.rank, range(shard.start, shard.stop))
            nodes[rank.node].held[rank.gpu] = held
        return run

    async def reconnect(self, address: str) -> None:
        """Open the link to a running engine and have it serve.  Raises `EngineFailed`."""
        try:
            async with asyncio.timeout(10.0):
                await self._connect(address)
        except (LinkLost, TimeoutError) as error:
            raise EngineFailed(str(error) or "no answer") from error
        if self.link is None or self.link.state != READY:
            # It may be waiting for GPUs that another engine has: it would wait for ever.
            raise EngineFailed("it did not serve yet")
        self.machine.to(PipelineState.STARTING, "found running")
        self.machine.to(PipelineState.STANDBY, "found running")
        await self.activate()

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        load = self.link.load if self.link is not None else None
        return {
            "name": self.name,
            "engine_id": self.engine_id,
            "state": str(self.state),
            "leaving": self.leaving,
            "started": self.started,
            "serving_since": self.serving_since,
            "switch_seconds": self.switch_seconds,
            "switch": dict(self.switch.seconds) if self.switch is not None else None,
            "weights_copied_bytes": self.copied_bytes,
            "throughput_rps": self.plan.estimate.throughput_rps,
            "capacity": self.capacity,
            "working_bytes": self.working_bytes,
            "running": load.running if load else 0,
            "waiting": load.waiting if load else 0,
            "stages": [
                {
                    "node": stage.node,
                    "instance": stage.instance,
                    "gpus": list(stage.gpus),
                    "tensor_parallel": stage.tensor_parallel,
                    "layers": [layers.start, layers.stop],
                }
                for stage, layers in zip(self.plan.stages, self.plan.layer_ranges, strict=True)
            ],
        }
