"""The manager under any order of events, in virtual time: what must never be, and what must come.

Agents, engines and machines are objects (`fake_world`); manager, membership, planner and dispatcher
are the real ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import pytest
from attrs import define, field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shuntserve_core.config.loader import Config
from shuntserve_core.control_plane.policy import planner
from shuntserve_core.control_plane.policy.capacity import FreeNode
from shuntserve_core.runtime import changes, cluster, manager, membership, nodes, run
from shuntserve_core.runtime.cluster import RunningCluster
from shuntserve_core.runtime.dispatcher import KILLS_ENGINES, Dispatcher
from shuntserve_core.runtime.launches import EngineSettings
from shuntserve_core.runtime.manager import Manager
from shuntserve_core.runtime.serve import place
from shuntserve_core.runtime.states import NodeState
from shuntserve_core.types.spot import SpotEvent
from shuntserve_plugins.balancers.weighted import WeightedRoundRobin
from tests.core.runtime.clusters import tiny_config
from tests.core.runtime.fake_links import Listener, journal_of
from tests.core.runtime.fake_world import FakeAgent, FakeEngine, World
from tests.core.runtime.virtual_time import EPOCH, run_virtually

NODES = ("big#0", "big#1", "small#0", "small#1", "small#2")
MODULES = [changes, cluster, manager, membership, nodes, run]


class Errors(logging.Handler):
    """Collects what was logged as a mistake of ours."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


@define
class Rig:
    """A control plane in the world, with clients."""

    config: Config
    world: World
    cluster: RunningCluster
    manager: Manager
    dispatcher: Dispatcher
    clients: list[Listener] = field(factory=list)
    errors: Errors = field(factory=Errors)
    numbers: Any = field(factory=count)

    def ask(self, tokens: int) -> None:
        journal = journal_of(f"r{next(self.numbers)}", tokens)
        client = Listener(journal)
        self.clients.append(client)
        self.dispatcher.submit(journal, client)

    def tell(self, node: str, kind: str, notice: float | None = None, **more: Any) -> None:
        now = EPOCH + asyncio.get_running_loop().time()
        deadline = None if notice is None else now + notice
        self.manager.membership.on_spot_event(SpotEvent(node, kind, deadline, **more))

    def states(self) -> dict[str, NodeState]:
        return {name: node.machine.state for name, node in self.cluster.nodes.items()}

    @property
    def calm(self) -> bool:
        return all(state is NodeState.UP for state in self.states().values()) and all(
            run.serves and not run.leaving for run in self.cluster.runs.values()
        )

    async def calm_down(self, seconds: float = 900.0) -> None:
        """Every notice is withdrawn, every node comes back; wait until nothing moves."""
        self.world.failing_launches = self.world.failing_starts = 0
        end, quiet = asyncio.get_running_loop().time() + seconds, 0
        while quiet < 80:
            assert asyncio.get_running_loop().time() < end, self.picture()
            for name, state in self.states().items():
                if state in (NodeState.NOTICED, NodeState.LOST):
                    self.tell(name, "restored")
            await asyncio.sleep(0.5)
            quiet = quiet + 1 if self.calm else 0

    def picture(self) -> str:
        lines = [f"{n} {s}" for n, s in self.states().items()]
        lines += [f"{r.name} {r.state} {r.leaving}" for r in self.cluster.runs.values()]
        return "\n".join([*lines, *map(str, list(self.cluster.history)[-30:])])


LENGTH = 512
"""Tokens of the longest sequence."""
Step = Callable[[Rig], Awaitable[None]]


def rig_of(config: Config, world: World, max_losses: int) -> Rig:
    settings = EngineSettings(world, "fake", config.model, "model", LENGTH, 8, 4096)
    dispatcher = Dispatcher(
        WeightedRoundRobin(),
        queue=10_000,
        queue_seconds=1e6,
        max_length=LENGTH,
        max_losses=max_losses,
    )
    running = RunningCluster(
        config,
        settings,
        world,
        dispatcher,
        lambda address: FakeAgent(world, address),  # type: ignore[arg-type, return-value]
    )
    return Rig(config, world, running, Manager(running), dispatcher)


async def live(config: Config, world: World, story: Step, max_losses: int) -> Rig:
    """Start, let the story happen, calm down, check, and close."""
    rig = rig_of(config, world, max_losses)
    logging.getLogger("shuntserve_core").addHandler(rig.errors)
    try:
        placement, spares = place(config)
        await rig.manager.start(placement.pipelines, spares)
        await story(rig)
        await rig.calm_down()
        check_calm(rig)
        await rig.manager.close()
        check_closed(rig)
    finally:
        logging.getLogger("shuntserve_core").removeHandler(rig.errors)
    return rig


def check_calm(rig: Rig) -> None:
    assert not rig.errors.said, rig.errors.said
    assert not rig.world.broken, rig.world.broken
    assert rig.dispatcher.in_flight == 0
    for client in rig.clients:
        assert client.outcome == "length", client.error
        assert len(client.tokens) == client.journal.sampling.max_tokens
    runs = rig.cluster.runs.values()
    assert rig.world.running_engines() == {run.engine_id for run in runs}
    best = planner.place_on(rig.config, [FreeNode(n, *PARTS[n]) for n in NODES[:4]], {})
    had = sum(run.plan.estimate.throughput_rps for run in runs)
    wanted = sum(plan.estimate.throughput_rps for plan in best)
    assert had >= wanted / rig.config.document.serve.improve - 1e-9, rig.picture()


PARTS = {n: (n.partition("#")[0], (0, 1) if n.startswith("big") else (0,)) for n in NODES}


def check_closed(rig: Rig) -> None:
    assert not [p for p in rig.world.processes.values() if p.alive]
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, left


class Stage:
    """Where stories are played: a cluster like this, in virtual time."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def play(self, *steps: Step, max_losses: int = 3) -> Rig:
        async def story(rig: Rig) -> None:
            for step in steps:
                await step(rig)

        world = World()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run.LinkClient, "connect", world.connect)
            return run_virtually(live(self.config, world, story, max_losses), patch, MODULES)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tiny_config(tmp_path_factory.mktemp("manager")))


def wait(seconds: float) -> Step:
    async def step(rig: Rig) -> None:
        await asyncio.sleep(seconds)

    return step


def event(node: str, kind: str, notice: float | None = None, **more: Any) -> Step:
    async def step(rig: Rig) -> None:
        rig.tell(node, kind, notice, **more)

    return step


def ask(tokens: int) -> Step:
    async def step(rig: Rig) -> None:
        rig.ask(tokens)

    return step


def kill_agent(node: str) -> Step:
    async def step(rig: Rig) -> None:
        rig.world.kill(node)

    return step


def kill_engine(number: int) -> Step:
    async def step(rig: Rig) -> None:
        running = sorted(rig.world.running_engines())
        if running:
            rig.world.kill_engine(running[number % len(running)])

    return step


def kill_store(node: str, gpu: int) -> Step:
    async def step(rig: Rig) -> None:
        rig.world.kill_store(node, gpu)

    return step


def fail_next(launches: int, starts: int) -> Step:
    async def step(rig: Rig) -> None:
        rig.world.failing_launches, rig.world.failing_starts = launches, starts

    return step


some_node = st.sampled_from(NODES)
STEPS = st.one_of(
    st.builds(wait, st.sampled_from((0.0, 0.01, 0.1, 1.0, 3.0, 5.0, 20.0))),
    st.builds(ask, st.integers(1, 200)),
    st.builds(
        event,
        some_node,
        st.just("notice"),
        st.sampled_from((None, -1.0, 0.0, 1.0, 4.0, 8.0, 60.0)),
        enforced=st.booleans(),
    ),
    st.builds(event, some_node, st.sampled_from(("withdrawn", "lost", "restored", "rebalance"))),
    st.builds(kill_agent, some_node),
    st.builds(kill_engine, st.integers(0, 5)),
    st.builds(kill_store, some_node, st.integers(0, 1)),
    st.builds(fail_next, st.integers(0, 2), st.integers(0, 2)),
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(STEPS, min_size=3, max_size=25))
def test_any_order_of_events_ends_well(stage: Stage, steps: list[Step]) -> None:
    # Engines are killed at random, so that one request may well be there each time.
    stage.play(ask(100), ask(150), *steps, max_losses=1000)


async def engine_of(rig: Rig, request: str) -> FakeEngine:
    """The engine that has a request, once one has."""
    for _ in range(1000):
        for engine in rig.world.engines.values():
            if engine.alive and engine.link is not None and request in engine.link.open:
                return engine
        await asyncio.sleep(0.1)
    raise AssertionError(rig.picture())


def test_a_request_is_given_up_when_its_engines_end_on_nodes_that_are_well(stage: Stage) -> None:
    async def pill(rig: Rig) -> None:
        rig.ask(400)
        client = rig.clients.pop()
        for _ in range(3):
            assert client.outcome is None
            engine = await engine_of(rig, client.journal.id)
            await asyncio.sleep(1.0)
            rig.world.kill_engine(engine.launch.engine_id)
        await asyncio.sleep(1.0)
        assert client.journal.code == KILLS_ENGINES
        assert rig.errors.said.pop().startswith("request 'r0' given up")

    stage.play(pill, wait(60.0), ask(20))


@pytest.mark.parametrize("how", ["vanishes", "is taken", "shuts down", "is noticed"])
def test_losses_of_nodes_are_held_against_nobody(stage: Stage, how: str) -> None:
    """A node's engines end before anybody knows that the node does."""

    async def lose(rig: Rig) -> None:
        rig.ask(500)
        for _ in range(5):
            engine = await engine_of(rig, "r0")
            await asyncio.sleep(0.2)
            node = min(engine.wanted)
            if how == "shuts down":
                rig.world.kill_engine(engine.launch.engine_id)
                await asyncio.sleep(2.0)
            if how == "is taken":
                rig.tell(node, "lost")
            elif how == "is noticed":
                rig.tell(node, "notice", 100.0)
                rig.world.kill_engine(engine.launch.engine_id)
            else:
                rig.world.kill(node)
            await asyncio.sleep(2.0)
            rig.tell(node, "restored")
        assert rig.clients[0].outcome is None
        assert rig.dispatcher.counters.given_up == 0

    rig = stage.play(lose)
    assert rig.dispatcher.counters.migrated["unplanned"] == 5


def test_a_word_about_a_type_is_about_every_node_of_it(stage: Stage) -> None:
    """As in the simulator: a trace may not name nodes."""

    async def check(rig: Rig) -> None:
        big = [name for name in NODES if name.startswith("big")]
        rig.tell("big", "lost")
        await asyncio.sleep(5.0)
        assert [name for name, state in rig.states().items() if state is NodeState.LOST] == big
        rig.tell("big", "restored")
        await asyncio.sleep(5.0)
        assert set(rig.states().values()) == {NodeState.UP}

    stage.play(check)


def test_the_last_nodes_are_no_spares(stage: Stage) -> None:
    """Two small nodes make a pipeline, of which one would be kept for the other."""

    async def serves(rig: Rig) -> None:
        await asyncio.sleep(120.0)
        assert [run.node_names for run in rig.cluster.serving()] == [{"small#0", "small#1"}]

    lost = [event(node, "lost") for node in NODES]
    back = [event(node, "restored") for node in ("small#0", "small#1")]
    stage.play(*lost, wait(5.0), *back, serves)
