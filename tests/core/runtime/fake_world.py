"""Machines, agents and engines that are objects: what a control plane could see of real ones.

The world holds what it can see of a control plane to what must never be: two engines that own the
memory of one GPU, an agent started beside another of its name, an engine started after its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import define, evolve, field

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.engine import EngineLaunch, WorkerCommand
from shuntserve_core.interfaces.launcher import AgentAddress, NodeSpec
from shuntserve_core.interfaces.link import READY, STANDBY, LinkLost
from shuntserve_core.link import LinkPolicy
from shuntserve_core.node.client import AgentLost
from shuntserve_core.node.watching import SpotWatch
from shuntserve_core.tensorstore.spec import ShardSpec
from tests.core.runtime.fake_links import FakeLink

STEP = 0.05
"""Seconds between two tokens."""
START = 3.0
"""Seconds that an engine takes to start."""


@define(eq=False)
class FakeProcess:
    """An agent and what it started."""

    name: str
    alive: bool = True
    engines: dict[str, int] = field(factory=dict)
    """Engines with workers here, and how many."""
    ended: set[str] = field(factory=set)
    stores: set[int] = field(factory=set)
    watches: tuple[SpotWatch, ...] = ()
    disabled: tuple[str, ...] = ()
    on_event: Callable[[dict[str, Any]], None] = lambda _: None
    on_lost: Callable[[str], None] = lambda _: None


@define(eq=False)
class FakeEngine:
    """An engine whose workers may be on several machines."""

    launch: EngineLaunch
    processes: dict[str, FakeProcess] = field(factory=dict)
    link: WorldLink | None = None
    owns_memory: bool = False

    @property
    def wanted(self) -> set[str]:
        return {rank.node for rank in self.launch.ranks}

    @property
    def gpus(self) -> set[tuple[FakeProcess, int]]:
        return {(self.processes[rank.node], rank.gpu) for rank in self.launch.ranks}

    @property
    def alive(self) -> bool:
        return self.processes.keys() == self.wanted and all(
            process.alive and self.launch.engine_id in process.engines
            for process in self.processes.values()
        )


class WorldLink(FakeLink):
    """Stands by until it is activated, and then makes a token a step."""

    def __init__(self, world: World, engine: FakeEngine) -> None:
        super().__init__()
        self.info = evolve(self.info, engine_id=engine.launch.engine_id)
        self.state = STANDBY
        self._world = world
        self._engine = engine
        self._steps: asyncio.Task[None] | None = None

    async def activate(self) -> None:
        self._world.take_memory(self._engine)
        await asyncio.sleep(0.05)
        if self.lost is not None:
            raise LinkLost(self.lost)
        self.announce(READY)
        self._steps = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self.lost is None:
            await asyncio.sleep(STEP)
            for name, (request, _) in list(self.open.items()):
                if name in self.open:
                    last = self.made[name] + 1 >= request.sampling.max_tokens
                    self.say(name, 1, finish="length" if last else None)

    def lose(self, reason: str = "killed") -> None:
        if self._steps is not None:
            self._steps.cancel()
        super().lose(reason)


class World:
    """Is launcher, engine plugin and the network to agents and engines at once."""

    needs_weights = True
    features: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.processes: dict[str, FakeProcess] = {}
        self.engines: dict[str, FakeEngine] = {}
        self.failing_launches = 0
        self.failing_starts = 0
        self.broken: list[str] = []
        """What must never be, and was."""

    def never(self, what: str) -> None:
        self.broken.append(what)

    # As a launcher

    async def open(self, state_dir: Path) -> None:
        """Nothing to keep."""

    async def adopt(self) -> list[AgentAddress]:
        return []

    def security_posture(self) -> list[str]:
        return []

    async def launch(self, node: NodeSpec) -> AgentAddress:
        if node.name in self.processes:
            self.never(f"{node.name} was launched beside itself")
        process = self.processes[node.name] = FakeProcess(node.name)
        await asyncio.sleep(0.5)
        if self.failing_launches:
            self.failing_launches -= 1
            raise UserError("no machine is to be had")
        return AgentAddress(node.name, f"fake:{id(process)}", "", "host")

    async def terminate(self, node: str) -> None:
        process = self.processes.get(node)
        await asyncio.sleep(0.02)
        if process is not None:
            if self.processes.get(node) is not process:
                self.never(f"a new {node} came while the old one was being ended")
            self.kill(node)
            self.processes.pop(node, None)

    # As an engine plugin

    def workers(self, launch: EngineLaunch) -> Sequence[WorkerCommand]:
        self.engines[launch.engine_id] = FakeEngine(launch)
        nodes = dict.fromkeys(rank.node for rank in launch.ranks)
        return [WorkerCommand(node, ()) for node in nodes]

    async def connect(self, address: str, token: str, policy: LinkPolicy) -> WorldLink:
        await asyncio.sleep(0.01)
        engine = self.engines[address]
        if not engine.alive:
            raise LinkLost("nobody answers")
        engine.link = WorldLink(self, engine)
        return engine.link

    # What happens

    def take_memory(self, engine: FakeEngine) -> None:
        for other in self.engines.values():
            if other is not engine and other.owns_memory and other.alive:
                shared = {(p.name, gpu) for p, gpu in engine.gpus & other.gpus}
                if shared:
                    self.never(f"two engines own the memory of {shared}")
        engine.owns_memory = True

    def started(self, engine: FakeEngine) -> None:
        if engine.processes.keys() == engine.wanted:
            asyncio.get_running_loop().call_later(START, self._ready, engine)

    def _ready(self, engine: FakeEngine) -> None:
        if not engine.alive:
            return
        name = engine.launch.engine_id
        if self.failing_starts:
            self.failing_starts -= 1
            self.kill_engine(name)
            return
        first = engine.launch.ranks[0].node
        says = {"event": "listening", "address": name, "engine_id": name, "worker": 0}
        self.tell(engine.processes[first], says)
        for process in engine.processes.values():
            self.tell(process, {"event": "ready", "engine_id": name, "worker": 0})

    def tell(self, process: FakeProcess, event: dict[str, Any]) -> None:
        asyncio.get_running_loop().call_later(
            0.01, lambda: process.on_event(event) if process.alive else None
        )

    def kill_engine(self, name: str) -> None:
        """Every worker dies."""
        engine = self.engines[name]
        for process in engine.processes.values():
            if process.engines.pop(name, None) is not None:
                process.ended.add(name)
                self.tell(process, {"event": "exit", "engine_id": name, "worker": 0, "code": -9})
        self._cut(engine, "killed")

    def kill_store(self, node: str, gpu: int) -> None:
        process = self.processes.get(node)
        if process is not None and gpu in process.stores:
            process.stores.discard(gpu)
            self.tell(process, {"event": "store-exit", "gpu": gpu, "code": -9})

    def kill(self, node: str) -> None:
        """The machine is gone, and all that was there."""
        process = self.processes.get(node)
        if process is None or not process.alive:
            return
        process.alive = False
        asyncio.get_running_loop().call_later(0.02, process.on_lost, "the connection closed")
        for engine in self.engines.values():
            if process in engine.processes.values():
                self._cut(engine, "its node is gone")

    def _cut(self, engine: FakeEngine, reason: str) -> None:
        if engine.link is not None:
            asyncio.get_running_loop().call_later(0.005, engine.link.lose, reason)

    def running_engines(self) -> set[str]:
        alive = [process for process in self.processes.values() if process.alive]
        return {name for process in alive for name in process.engines}


class FakeAgent:
    """What `AgentClient` is to a real agent."""

    def __init__(self, world: World, address: AgentAddress) -> None:
        self.address = address
        self.store_sockets: Mapping[int, str] = {gpu: f"socket {gpu}" for gpu in range(8)}
        self.devices: Mapping[int, str] = {gpu: f"cuda:{gpu}" for gpu in range(8)}
        self._world = world
        self._process = world.processes[address.node]

    async def _call(self, seconds: float = 0.005) -> FakeProcess:
        await asyncio.sleep(seconds)
        if not self._process.alive:
            raise AgentLost(f"{self.address.node} does not answer")
        return self._process

    async def describe(self) -> dict[str, Any]:
        await self._call()
        return {"engines": []}

    async def load_shard(self, gpu: int, spec: ShardSpec) -> dict[str, Any]:
        process = await self._call(1.0)
        process.stores.add(gpu)
        return {"bytes_read": 1000}

    async def retain(self, gpu: int, specs: Sequence[ShardSpec]) -> int:
        await self._call()
        return 0

    async def drop_store(self, gpu: int) -> None:
        (await self._call()).stores.discard(gpu)

    async def free_port(self) -> int:
        await self._call()
        return 1

    async def start_engine(
        self, engine_id: str, commands: Sequence[WorkerCommand], launch: Mapping[str, Any]
    ) -> None:
        # As with HTTP, a caller who gives up does not take back what is on its way.
        process, engine = self._process, self._world.engines[engine_id]

        def arrives() -> None:
            if process.alive and engine_id not in process.ended:
                process.engines[engine_id] = len(commands)
                engine.processes[process.name] = process
                self._world.started(engine)

        asyncio.get_running_loop().call_later(0.03, arrives)
        await self._call(0.04)

    async def stop_engine(self, engine_id: str, grace: float = 1.0) -> None:
        process = await self._call()
        process.ended.add(engine_id)
        process.engines.pop(engine_id, None)

    async def watch_spot(self, watches: Sequence[SpotWatch]) -> None:
        process = await self._call()
        process.watches = tuple(watches)

    async def disable_plugins(self, names: Sequence[str]) -> None:
        process = await self._call()
        process.disabled = tuple(names)

    def watch(
        self, on_event: Callable[[dict[str, Any]], None], on_lost: Callable[[str], None]
    ) -> None:
        self._process.on_event, self._process.on_lost = on_event, on_lost
        if not self._process.alive:
            asyncio.get_running_loop().call_soon(on_lost, "the connection closed")

    async def close(self) -> None:
        self._process.on_event = self._process.on_lost = lambda _: None
