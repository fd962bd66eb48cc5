"""The engine as node agents run it: real processes, a real link, real tensor stores."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from attrs import evolve

from shuntserve_core.errors import UserError
from shuntserve_core.interfaces.link import READY, STANDBY
from shuntserve_core.link import LinkClient
from shuntserve_core.tensorstore import StoreClient
from shuntserve_core.types.request import EngineRequest, SamplingParams
from shuntserve_plugins.engines.embedded.engine import Embedded
from tests.plugins.engines.embedded.forked import TemplateForTests
from tests.plugins.engines.embedded.local import LocalEngine
from tests.plugins.engines.embedded.processes import (
    EngineProcesses,
    Model,
    Stores,
    Streams,
    launch_of,
    until,
)
from tests.plugins.engines.embedded.requests import request, resumed, said, variety

LAYERS, DEGREES = [(0, 1), (1, 4)], [2, 1]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with Stores(tmp_path_factory.mktemp("stores"), sum(DEGREES)) as stores:
        yield stores


@pytest.fixture(scope="module")
def template() -> Iterator[TemplateForTests]:
    with TemplateForTests(Embedded()) as template:
        yield template


@pytest.fixture(scope="module")
def expected(llama: Model) -> dict[str, list[int]]:
    engine = LocalEngine(llama, [(0, 4)], [1])
    long = request("long", max_tokens=150)
    outputs = engine.run([*variety(17), long])
    engine.close()
    return {name: [token for token, _ in said(steps)] for name, steps in outputs.items()}


async def opened(engine: EngineProcesses) -> LinkClient:
    await asyncio.to_thread(engine.wait_ready)
    link = await engine.link()
    await link.activate()
    return link


@pytest.mark.parametrize("forked", [True, False])
async def test_processes_say_what_one_process_says(
    llama: Model,
    stores: Stores,
    template: TemplateForTests,
    expected: dict[str, list[int]],
    forked: bool,
) -> None:
    launch = launch_of(llama, LAYERS, DEGREES, stores)
    with EngineProcesses(launch, template if forked else None) as engine:
        link = await opened(engine)
        assert link.info.max_length == 256
        streams = Streams(link)
        for one in variety(17):
            streams.submit(one)
        for one in variety(17):
            assert await streams.tokens(one.id) == expected[one.id]
        # Aborted within a step, and everything is free again.
        for index in range(8):
            streams.submit(request(f"aborted {index}", max_tokens=200))
        await asyncio.sleep(0.05)
        for index in range(8):
            link.abort(f"aborted {index}")
        streams.submit(variety(1)[0])
        assert await streams.tokens(variety(1)[0].id) == expected[variety(1)[0].id]
        await until(lambda: not link.load.running and not link.load.kv_used)
        link.close()


async def test_the_next_engine_takes_over(
    llama: Model, stores: Stores, template: TemplateForTests, expected: dict[str, list[int]]
) -> None:
    """Concurrent initialization: nothing is read again, and the stream goes on where it was."""
    long = request("long", max_tokens=150)
    launch = launch_of(llama, LAYERS, DEGREES, stores, engine_id="old")
    with EngineProcesses(launch, template) as old:
        link = await opened(old)
        streams = Streams(link)
        with StoreClient(stores.sockets[0]) as store:
            before = store.stats()
            launch = launch_of(llama, LAYERS, DEGREES, stores, engine_id="new")
            with EngineProcesses(launch, template) as new:
                await asyncio.to_thread(new.wait_ready)
                successor = await new.link()
                await until(lambda: successor.state == STANDBY)
                activating = asyncio.create_task(successor.activate())
                await until(lambda: bool(store.stats().waiting))
                assert store.stats().bytes_read == before.bytes_read
                assert [lease.owner for lease in store.stats().leases] == ["old"]
                streams.submit(long)
                await until(lambda: len(streams.outputs["long"]) > 9)
                for rank in old.ranks:
                    rank.kill()
                await activating
                assert successor.state == READY
                assert [lease.owner for lease in store.stats().leases] == ["new"]
                had = list(streams.outputs["long"])
                assert len(had) < len(expected["long"])
                resuming = Streams(successor)
                resuming.submit(resumed(long, had))
                assert await resuming.tokens("long") == expected["long"]
                successor.close()
        link.close()


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_no_rank_outlives_another(
    llama: Model, stores: Stores, template: TemplateForTests, victim: int
) -> None:
    with EngineProcesses(launch_of(llama, LAYERS, DEGREES, stores), template) as engine:
        link = await opened(engine)
        streams = Streams(link)
        streams.submit(request("running", max_tokens=200))
        engine.ranks[victim].send_signal(signal.SIGKILL)
        for rank in engine.ranks:
            await asyncio.to_thread(rank.wait, 10)
        link.close()


@pytest.mark.parametrize("victim", [1, 2])
async def test_a_rank_that_hangs_is_detected(
    llama: Model, stores: Stores, template: TemplateForTests, victim: int
) -> None:
    with EngineProcesses(launch_of(llama, LAYERS, DEGREES, stores), template) as engine:
        link = await opened(engine)
        Streams(link).submit(request("running", max_tokens=200))
        engine.ranks[victim].send_signal(signal.SIGSTOP)
        for rank in engine.ranks:
            if rank is not engine.ranks[victim]:  # which can do nothing, not even end
                await asyncio.to_thread(rank.wait, 20)
        link.close()


@pytest.mark.parametrize("how", ["terminated", "input closed"])
@pytest.mark.parametrize("forked", [True, False])
async def test_an_engine_ends_when_told(
    llama: Model, stores: Stores, template: TemplateForTests, how: str, forked: bool
) -> None:
    launch = launch_of(llama, [(0, 4)], [1], stores)
    with EngineProcesses(launch, template if forked else None) as engine:
        await asyncio.to_thread(engine.wait_ready)
        rank = engine.ranks[0]
        if how == "terminated":
            rank.terminate()
        else:
            assert rank.stdin
            rank.stdin.close()
        assert await asyncio.to_thread(rank.wait, 10) == 0


async def test_wrong_requests_are_refused(
    llama: Model, stores: Stores, template: TemplateForTests
) -> None:
    with EngineProcesses(launch_of(llama, [(0, 4)], [1], stores), template) as engine:
        link = await opened(engine)
        streams = Streams(link)
        sampling = SamplingParams(max_tokens=4)
        wrong = {
            "no tokens": EngineRequest("empty", (), sampling),
            "leave no room": EngineRequest("long", (1,) * 256, sampling),
            "from 0 to 1099": EngineRequest("vocabulary", (1100,), sampling),
            "this engine has no guided": EngineRequest(
                "guided", (1,), evolve(sampling, guided={"regex": "a"})
            ),
        }
        for reason, one in wrong.items():
            streams.submit(one)
            step = await streams.finished[one.id]
            assert step.finish == "error"
            assert step.bad_request
            assert reason in step.error
        link.close()


async def test_a_second_engine_has_little_of_its_own(
    llama: Model, stores: Stores, template: TemplateForTests
) -> None:
    """It shares what was imported; a process that imports torch has 150 MB of its own."""
    launch = launch_of(llama, LAYERS, DEGREES, stores)
    with EngineProcesses(launch, template) as engine:
        await asyncio.to_thread(engine.wait_ready)
        for rank in engine.ranks:
            assert psutil.Process(rank.pid).memory_full_info().uss < 50 << 20


async def test_a_killed_template_takes_no_engine_along(
    llama: Model, stores: Stores, expected: dict[str, list[int]]
) -> None:
    with TemplateForTests(Embedded()) as template:
        launch = launch_of(llama, LAYERS, DEGREES, stores)
        engine = EngineProcesses(launch, template)
    with engine:
        link = await opened(engine)
        streams = Streams(link)
        streams.submit(variety(1)[0])
        assert await streams.tokens(variety(1)[0].id) == expected[variety(1)[0].id]
        link.close()


def test_what_cannot_run_is_refused_before_it_starts(
    llama: Model, tmp_path: Path, stores: Stores
) -> None:
    launch = launch_of(llama, [(0, 4)], [2], stores)
    with pytest.raises(UserError, match="degree 8 does not divide 4"):
        Embedded().workers(evolve(launch, tensor_parallel=(8,)))
    with pytest.raises(UserError, match="hold less than 32 tokens"):
        Embedded().workers(evolve(launch, kv_bytes=1000))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="its type is 'bert'"):
        Embedded().workers(evolve(launch, model_dir=str(tmp_path)))


def test_workers_are_one_a_rank_and_find_their_node(llama: Model, stores: Stores) -> None:
    commands = Embedded().workers(launch_of(llama, LAYERS, DEGREES, stores))
    assert [command.ranks for command in commands] == [(0,), (1,), (2,)]
    assert {command.node for command in commands} == {"node"}
    assert "a token for tests" not in " ".join(commands[0].argv)
