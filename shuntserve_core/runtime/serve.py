"""`shuntserve serve`: from a configuration to a running cluster, and to its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from attrs import evolve, frozen

from shuntserve_core.config.build import (
    optimizer_from,
    plugin_from,
    problem_from,
    refuse_contradiction,
)
from shuntserve_core.config.fields import resolved
from shuntserve_core.config.loader import Config
from shuntserve_core.config.serving import SpotTable
from shuntserve_core.config.suited import refuse_unsuited
from shuntserve_core.errors import UserError
from shuntserve_core.files import open_log, own_dir
from shuntserve_core.folders import refuse_tokenizer
from shuntserve_core.interfaces.cloud import SpotSource
from shuntserve_core.interfaces.frontdoor import FrontDoor
from shuntserve_core.interfaces.launcher import ListeningLauncher
from shuntserve_core.node.client import AgentClient
from shuntserve_core.planning.spares import spare_nodes, without_spares
from shuntserve_core.runtime import collecting
from shuntserve_core.runtime.cluster import RunningCluster
from shuntserve_core.runtime.control import ControlServer
from shuntserve_core.runtime.dispatcher import Dispatcher
from shuntserve_core.runtime.durations import Stopwatch
from shuntserve_core.runtime.launches import EngineSettings
from shuntserve_core.runtime.manager import Manager
from shuntserve_core.runtime.places import state_dir_of
from shuntserve_core.runtime.run import PipelineRun
from shuntserve_core.runtime.waiting import Announcer
from shuntserve_core.surfaces import CONTROL
from shuntserve_core.types import Placement
from shuntserve_core.weights.agreement import (
    StoreUnreadable,
    refuse_other_facts,
    refuse_other_model,
)

logger = logging.getLogger(__name__)

SMALL_COPIES = 1_000_000
"""Bytes: biases, for example, may have to be put together, which is not worth a word."""


@frozen
class Report:
    """What a person wants to know once it runs."""

    url: str
    control_url: str
    placement: Placement | None
    """None where running engines were adopted."""
    spares: tuple[str, ...]
    security: tuple[str, ...]
    waits_for: str = ""
    """What must happen before anybody is served; empty where a pipeline serves."""


def settings_of(config: Config) -> EngineSettings:
    """What all engines have in common.  Raises `UserError`."""
    document, where = config.document, str(config.file)
    model_dir = document.serve.model_dir or document.model.path
    if model_dir is None:
        raise UserError(
            "the model's tokenizer is not known",
            where=f"{where}: serve.model_dir",
            remedy="give the directory with config.json and tokenizer.json",
        )
    engine = plugin_from(config, "engine", document.engine)
    weights = document.weights
    if engine.needs_weights and weights is None:
        raise UserError(
            f"engine {document.engine.name!r} needs weights",
            where=f"{where}: weights",
            remedy='add [weights] with store = "..." and model = "BASE/MODEL"',
        )
    directory = resolved(config.file.parent, model_dir).resolve()
    refuse_tokenizer(directory, f"{where}: serve.model_dir")
    refuse_unsuited(config)
    refuse_contradiction(config)
    if engine.needs_weights:
        refuse_other_facts(config.model, directory, f"{where}: serve.model_dir")
    return EngineSettings(
        engine=engine,
        engine_name=document.engine.name,
        model=config.model,
        model_dir=str(directory),
        max_length=document.serve.max_length or config.workload.max_length,
        max_batch=document.serve.max_batch,
        kv_bytes=document.serve.kv_bytes,
        store_url=_store_url(config, weights.store) if weights else "",
        store_model=weights.model if weights else "",
    )


def compare_with_store(config: Config, settings: EngineSettings, *, running: bool) -> None:
    """Raise `UserError` where the weight store is of another model, or cannot be read.

    Engines that are `running` have their weights: for them, a store that is away is a warning.
    """
    if not settings.engine.needs_weights:
        return
    directory = Path(settings.model_dir)
    try:
        refuse_other_model(settings.store_url, settings.store_model, directory, config.registry)
    except StoreUnreadable as error:
        if not running:
            raise
        logger.warning("%s; engines that run go on, others cannot start", error)


def _store_url(config: Config, store: str) -> str:
    return store if "://" in store else str(resolved(config.file.parent, store).resolve())


def place(config: Config) -> tuple[Placement, tuple[str, ...]]:
    """The first placement, and the names of the spare nodes.  Raises `UserError`."""
    cluster, spares = config.cluster, config.document.serve.spares
    problem = problem_from(config, cluster=without_spares(cluster, spares))
    placement = optimizer_from(config).place(problem)
    return placement, spare_nodes(cluster, spares, placement)


def _posture_of(door: FrontDoor) -> Sequence[str]:
    """What a front door says that it opens; a plugin may lack the word for it."""
    if hasattr(door, "security_posture"):
        return door.security_posture()
    return FrontDoor.security_posture(door)


def copies_warning(runs: Iterable[PipelineRun], dtype: str) -> str:
    """A line about weights that engines could not borrow; empty if that is nothing to speak of."""
    copied = sum(run.copied_bytes for run in runs)
    if copied < SMALL_COPIES:
        return ""
    return (
        f"engines hold {copied / 1e6:.0f} MB of weights in copies of their own, beside the tensor "
        f"stores', and so will each engine that comes after them, while the one before serves: "
        f"repacked for a CPU, or not stored as model.dtype = {dtype!r}"
    )


@contextlib.contextmanager
def only_one(state_dir: Path) -> Iterator[None]:
    """Hold the state directory: a second control plane on it would fight the first."""
    own_dir(state_dir)
    with open_log(state_dir / "lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                "a control plane with this state directory is running already",
                where=str(state_dir),
                remedy="stop it, or give serve.state_dir another one",
            ) from None
        yield


def run_in_loop(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run it to its end in a new event loop: uvloop's where it is installed.

    That is twice as fast at moving small frames.
    """
    try:
        import uvloop
    except ImportError:
        asyncio.run(coroutine)
    else:
        uvloop.run(coroutine)


async def serve(
    config: Config,
    on_ready: Callable[[Report], None],
    on_change: Callable[[str], None] = lambda _: None,
    stop: asyncio.Event | None = None,
) -> None:
    """Run until `stop` is set; without one, until SIGTERM or SIGINT.

    A second signal ends everything at once.  `on_change` is told later on what is waited for when
    no pipeline serves any more, and an empty string once one serves.
    """
    state_dir = state_dir_of(config)
    with only_one(state_dir):
        async with aiohttp.ClientSession() as session:
            await _Server(config, state_dir, session, stop).run(on_ready, on_change)


class _Server:
    """The parts of a control plane, in the order in which they come up and go down."""

    def __init__(
        self,
        config: Config,
        state_dir: Path,
        session: aiohttp.ClientSession,
        stop: asyncio.Event | None,
    ) -> None:
        document = config.document
        self._config = config
        self._state_dir = state_dir
        settings = settings_of(config)
        self._launcher = plugin_from(config, "launcher", document.launcher)
        self._frontdoor = plugin_from(config, "frontdoor", document.frontdoor)
        stopwatch = Stopwatch()
        self._dispatcher = Dispatcher(
            plugin_from(config, "balancer", document.balancer),
            queue=document.serve.queue,
            queue_seconds=document.serve.queue_seconds,
            max_length=settings.max_length,
            features=settings.engine.features,
            observer=stopwatch,
        )
        self._dispatcher.durations = stopwatch.as_json
        self._cluster = RunningCluster(
            config,
            settings,
            self._launcher,
            self._dispatcher,
            lambda address: AgentClient(address, session),
        )
        self._dispatcher.keep_tokens = self._cluster.strategy.migrate
        self._dispatcher.cluster_status = self._cluster.status
        self._manager = Manager(self._cluster)
        self._control = ControlServer(
            self._manager, state_dir, lambda: {"requests": self._dispatcher.own_status()}
        )
        self._signals = 0
        self._heeds_signals = stop is None
        self._stop = stop or asyncio.Event()

    async def run(
        self, on_ready: Callable[[Report], None], on_change: Callable[[str], None]
    ) -> None:
        """Come up, serve, and go down."""
        if self._heeds_signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        await self._launcher.open(self._state_dir)
        control_url = await self._control.start()
        coming_up = asyncio.create_task(self._come_up())
        stopped = asyncio.create_task(self._stop.wait())
        background: list[asyncio.Task[Any]] = [coming_up, stopped]
        try:
            settings = self._cluster.settings
            name = self._config.document.serve.model_name or settings.model.name
            url = await self._frontdoor.start(self._dispatcher, settings.model_dir, name)
            await asyncio.wait({coming_up, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if coming_up.done():
                placement, spares = coming_up.result()
                background += map(asyncio.create_task, self._listeners())
                security = (
                    *_posture_of(self._frontdoor),
                    CONTROL.line(f"{control_url}, loopback only", f"secret in {self._state_dir}"),
                    *self._launcher.security_posture(),
                )
                warning = copies_warning(self._cluster.runs.values(), settings.model.dtype)
                if warning:
                    logger.warning(warning)
                Announcer(self._cluster, on_change)
                waits_for = self._cluster.waits_for
                collecting.settle()
                on_ready(Report(url, control_url, placement, spares, security, waits_for))
                await stopped
            coming_up.cancel()
            await self._frontdoor.drain(self._config.document.serve.drain_seconds)
        finally:
            for task in background:
                task.cancel()
            await asyncio.wait(background)
            await self._manager.close()
            if isinstance(self._launcher, ListeningLauncher):
                await self._launcher.close()
            await self._control.close()

    async def _come_up(self) -> tuple[Placement | None, tuple[str, ...]]:
        addresses = await self._launcher.adopt()
        await asyncio.to_thread(
            compare_with_store, self._config, self._cluster.settings, running=bool(addresses)
        )
        if addresses:
            await self._manager.adopt(addresses)
            return None, ()
        placement, spares = place(self._config)
        await self._manager.start(placement.pipelines, spares)
        return placement, spares

    def _listeners(self) -> list[Coroutine[Any, Any, None]]:
        """One for each spot source that runs here; nodes have theirs.  Raises `UserError`."""
        made = [
            (t, plugin_from(self._config, "spot-source", t)) for t in self._config.document.spot
        ]
        return [self._listen(table, source) for table, source in made if not source.on_node]

    async def _listen(self, table: SpotTable, source: SpotSource) -> None:
        try:
            async for event in source.events(tuple(self._cluster.nodes)):
                if event.kind == "notice" and event.deadline is None:
                    event = evolve(event, deadline=time.time() + table.default_notice)
                self._manager.membership.on_spot_event(event)
        except Exception as error:
            logger.exception("spot source %s failed", table.name)
            self._cluster.note("spot source failed", source=table.name, reason=str(error))

    def _on_signal(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals == 2:
            logger.warning("second signal: ending at once")
            for task in asyncio.all_tasks():
                task.cancel()
