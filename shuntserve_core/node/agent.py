"""What an agent does: keep one tensor store a GPU, and start and end engine workers."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cattrs
from attrs import define, field

from shuntserve_core.errors import UserError
from shuntserve_core.forking import templates
from shuntserve_core.forking.templates import TemplateFailed, Templates
from shuntserve_core.interfaces.engine import Template, WorkerCommand
from shuntserve_core.node.logs import last_words, prune, quoted, ranks_named, worker_log
from shuntserve_core.node.processes import Child
from shuntserve_core.node.watching import SpotWatch, Watching
from shuntserve_core.registry import DISABLE_VARIABLE, Registry
from shuntserve_core.tensorstore import ShardSpec, StoreClient

logger = logging.getLogger(__name__)

STORE_START_SECONDS = 30.0


@define
class EngineOnNode:
    """The workers of one engine that run here."""

    engine_id: str
    launch: Mapping[str, Any]
    """What the control plane wants back if it has to adopt this engine; opaque here."""
    ranks: tuple[tuple[int, ...], ...]
    """Global ranks of each worker process."""
    children: list[Child] = field(factory=list)
    address: str = ""
    ready: set[int] = field(factory=set)
    """Worker processes, by index, that reported ready."""
    exited: dict[int, int] = field(factory=dict)
    """Exit codes of workers that ended, by index."""
    stopping: bool = False

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "engine_id": self.engine_id,
            "launch": dict(self.launch),
            "ranks": [list(ranks) for ranks in self.ranks],
            "pids": [child.process.pid for child in self.children],
            "address": self.address,
            "ready": len(self.ready) == len(self.children),
            "alive": not self.exited,
        }


class Agent:
    """The state of one node.  Events are given to every subscribed queue."""

    def __init__(
        self,
        name: str,
        gpus: int,
        run_dir: Path,
        *,
        device: str = "cpu",
        log_dir: Path | None = None,
    ) -> None:
        self.name = name
        self.gpus = gpus
        self.run_dir = run_dir
        self.log_dir = log_dir or run_dir
        """Where logs stay; `run_dir` may go with the agent."""
        self.device = device
        self.started = time.time()
        self.last_contact = time.monotonic()
        self.stopped = asyncio.Event()
        self._stores: dict[int, Child] = {}
        self._store_locks: dict[int, asyncio.Lock] = {}
        self._engines: dict[str, EngineOnNode] = {}
        self._templates = Templates(self.log_dir)
        self._ended: set[str] = set()
        """Engines that must not be started (again): a stop may overtake a start."""
        self._watching = Watching(name, self.emit)
        self._disabled_here = os.environ.get(DISABLE_VARIABLE, "")
        self._subscribers: set[asyncio.Queue[dict[str, Any]]] = set()

    # Events

    def subscribe(self) -> asyncio.Queue[dict[str, Any]]:
        """A queue that receives every event from now on, and first each notice that stands."""
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for spot in self._watching.standing:
            queue.put_nowait({"event": "spot", "spot": spot})
        self._subscribers.add(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[dict[str, Any]]) -> None:
        """Stop filling a queue."""
        self._subscribers.discard(queue)

    def emit(self, **event: Any) -> None:
        """Tell every subscriber."""
        for queue in self._subscribers:
            queue.put_nowait(event)

    # Tensor stores

    def store_socket(self, gpu: int) -> str:
        """Unix socket of a GPU's tensor store."""
        if not 0 <= gpu < self.gpus:
            raise UserError(f"node {self.name} has no GPU {gpu}", remedy=f"it has {self.gpus}")
        return str(self.run_dir / f"store-{gpu}.sock")

    def device_of(self, gpu: int) -> str:
        """What PyTorch calls a GPU of this node."""
        return self.device if self.device == "cpu" else f"{self.device}:{gpu}"

    async def _ensure_store(self, gpu: int) -> str:
        path = self.store_socket(gpu)
        child = self._stores.get(gpu)
        if child is not None and child.alive:
            return path
        Path(path).unlink(missing_ok=True)
        argv = [sys.executable, "-m", "shuntserve_core.tensorstore", "--socket", path]
        argv += ["--device", self.device_of(gpu)]
        log = self.log_dir / f"store-{gpu}.log"
        listens: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def answer(listening: bool) -> None:
            if not listens.done():
                listens.set_result(listening)

        def ended(code: int) -> None:
            answer(False)
            self._store_ended(gpu, code)

        self._stores[gpu] = await Child.start(
            argv,
            name=f"store {gpu}",
            log=log,
            on_line=lambda _: answer(True),
            on_exit=ended,
        )
        try:
            started = await asyncio.wait_for(listens, STORE_START_SECONDS)
        except TimeoutError:
            started = False
        if not started:
            raise UserError(
                f"the tensor store of GPU {gpu} did not start", remedy=f"see {quoted(log)}"
            )
        return path

    def _store_ended(self, gpu: int, code: int) -> None:
        child = self._stores.get(gpu)
        if child is not None and not child.alive:
            del self._stores[gpu]
            log, who = self.log_dir / f"store-{gpu}.log", f"the tensor store of GPU {gpu}"
            said = {"who": who, "log": str(log), "last_words": last_words(log)}
            self.emit(event="store-exit", gpu=gpu, code=code, **said)

    async def load_shard(self, gpu: int, spec: ShardSpec) -> dict[str, Any]:
        """Have a GPU's tensor store hold a shard; starts the store if it does not run."""
        lock = self._store_locks.setdefault(gpu, asyncio.Lock())
        async with lock:
            path = await self._ensure_store(gpu)
            return await asyncio.to_thread(_load, path, spec)

    async def retain(self, gpu: int, specs: Sequence[ShardSpec]) -> int:
        """Have a GPU's store drop all that none of these shards needs; bytes freed."""
        child = self._stores.get(gpu)
        if child is None:
            return 0
        return await asyncio.to_thread(_retain, self.store_socket(gpu), specs)

    async def drop_store(self, gpu: int) -> None:
        """End a GPU's tensor store, and so free its memory."""
        child = self._stores.get(gpu)
        if child is not None:
            del self._stores[gpu]
            await child.stop()

    async def store_stats(self) -> dict[str, Any]:
        """Statistics of every running store, by GPU."""
        stats: dict[str, Any] = {}
        for gpu, child in sorted(self._stores.items()):
            try:
                numbers = await asyncio.to_thread(_stats, self.store_socket(gpu))
            except (OSError, UserError) as error:
                numbers = {"error": str(error)}
            stats[str(gpu)] = {"pid": child.process.pid, **numbers}
        return stats

    # Engines

    async def start_engine(
        self, engine_id: str, commands: Sequence[WorkerCommand], launch: Mapping[str, Any]
    ) -> None:
        """Start the worker processes of an engine that belong on this node."""
        if engine_id in self._engines or engine_id in self._ended:
            raise UserError(f"engine {engine_id} was started here before")
        engine = EngineOnNode(engine_id, launch, tuple(command.ranks for command in commands))
        self._engines[engine_id] = engine
        prune(self.log_dir)
        for index, command in enumerate(commands):
            child = await self._start_worker(engine, index, command)
            engine.children.append(child)
            if engine_id in self._ended:  # stopped in the meantime
                await child.stop(0.0)
                return

    async def prepare(self, template: Template) -> None:
        """Start to import what workers need, before there are any."""
        if templates.SUPPORTED:
            await self._templates.prepare(template)

    async def _start_worker(
        self, engine: EngineOnNode, index: int, command: WorkerCommand
    ) -> Child:
        said = partial(self._worker_said, engine, index)
        ranks = ranks_named(command.ranks, index)
        name = f"{engine.engine_id} {ranks}"
        log = worker_log(self.log_dir, engine.engine_id, ranks)
        ended = partial(self._worker_ended, engine, index, log)
        if command.template is not None and templates.SUPPORTED:
            try:
                return await self._templates.fork(
                    command, command.template, name=name, log=log, on_line=said, on_exit=ended
                )
            except TemplateFailed as error:
                logger.warning("%s is started from nothing: %s", name, error)
        return await Child.start(
            command.argv,
            name=name,
            log=log,
            environment=command.environment,
            stdin=command.stdin,
            on_line=said,
            on_exit=ended,
        )

    def _worker_said(self, engine: EngineOnNode, index: int, line: dict[str, Any]) -> None:
        if line.get("event") == "listening":
            engine.address = str(line["address"])
        elif line.get("event") == "ready":
            engine.ready.add(index)
        self.emit(**{**line, **self._names(engine, index)})

    @staticmethod
    def _names(engine: EngineOnNode, index: int) -> dict[str, Any]:
        who = ranks_named(engine.ranks[index], index)
        return {"engine_id": engine.engine_id, "worker": index, "who": who}

    def _worker_ended(self, engine: EngineOnNode, index: int, log: Path, code: int) -> None:
        engine.exited[index] = code
        if not engine.stopping:
            words = last_words(log)
            names = self._names(engine, index)
            self.emit(event="exit", code=code, log=str(log), last_words=words, **names)

    async def stop_engine(self, engine_id: str, grace: float) -> None:
        """End every worker of an engine here; an unknown one is ignored."""
        self._ended.add(engine_id)
        engine = self._engines.pop(engine_id, None)
        if engine is not None:
            engine.stopping = True
            await asyncio.gather(*(child.stop(grace) for child in engine.children))

    # Interruptions

    def watch_spot(self, watches: Sequence[SpotWatch]) -> None:
        """Listen to these spot sources and to no others.  Raises `UserError`."""
        self._watching.follow(watches, Registry())

    # Plugins

    def disable_plugins(self, names: Sequence[str]) -> None:
        """Leave out what the control plane leaves out, here and in what is started from now on,
        beside what this node leaves out by itself."""
        os.environ[DISABLE_VARIABLE] = ",".join(filter(None, (self._disabled_here, *names)))

    # The node

    async def describe(self) -> dict[str, Any]:
        """Everything about the node, as JSON."""
        return {
            "name": self.name,
            "gpus": self.gpus,
            "pid": os.getpid(),
            "started": self.started,
            "devices": [self.device_of(gpu) for gpu in range(self.gpus)],
            "store_sockets": [self.store_socket(gpu) for gpu in range(self.gpus)],
            "stores": await self.store_stats(),
            "engines": [engine.describe() for engine in self._engines.values()],
            "templates": self._templates.describe(),
        }

    @staticmethod
    def free_port(host: str) -> int:
        """A TCP port that nobody listens on just now."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
        return port

    async def close(self) -> None:
        """End every engine, then every store."""
        self._watching.close()
        await asyncio.gather(*(self.stop_engine(name, 1.0) for name in list(self._engines)))
        await self._templates.close()
        await asyncio.gather(*(self.drop_store(gpu) for gpu in list(self._stores)))


def _load(path: str, spec: ShardSpec) -> dict[str, Any]:
    with StoreClient(path) as store:
        return dict(cattrs.unstructure(store.load(spec)))


def _retain(path: str, specs: Sequence[ShardSpec]) -> int:
    with StoreClient(path) as store:
        return store.retain(specs)


def _stats(path: str) -> dict[str, Any]:
    with StoreClient(path) as store:
        return dict(cattrs.unstructure(store.stats()))
