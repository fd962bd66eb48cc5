"""An engine that stands by has done everything but to own its KV memory, and touches none."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest
from attrs import evolve

from shuntserve_core.interfaces.link import STANDBY
from shuntserve_core.link import LinkClient
from shuntserve_core.tensorstore import StoreClient, StoreStats
from shuntserve_core.types.request import EngineRequest, SamplingParams
from tests.plugins.engines.embedded.forked import TemplateForTests
from tests.plugins.engines.embedded.processes import TOKEN, Stores, Streams, until
from tests.plugins.engines.vllm.models import StoredModel, launch_of
from tests.plugins.engines.vllm.serving import (
    PATIENT,
    Forked,
    greedy_requests,
    reference,
    serving,
    together,
)

pytestmark = pytest.mark.timeout(600)

LAYERS, DEGREES = [(0, 3), (3, 8)], [1, 1]
LONG = EngineRequest("long", (3, 1, 4, 1, 5), SamplingParams(max_tokens=60, temperature=0))


@contextmanager
def kv_files(stats: StoreStats) -> Iterator[list[IO[bytes]]]:
    """The chunks of KV memory that a store holds, as the kernel shows its files."""
    with ExitStack() as stack:
        held = Path(f"/proc/{stats.pid}/fd").iterdir()
        chunks = [file for file in held if "memfd:shuntserve-memory" in str(file.readlink())]
        yield [stack.enter_context(chunk.open("rb")) for chunk in chunks]


def anything(file: IO[bytes]) -> bool:
    """Whether there is more than zeros."""
    return any(file.read())


async def test_practice_leaves_nothing_behind(
    llama: StoredModel, template: TemplateForTests, tmp_path: Path
) -> None:
    """KV memory is zeros when an engine comes to own it, and every block is free."""
    with Stores(tmp_path, 2) as stores, StoreClient(stores.sockets[1]) as store:
        launch = launch_of(llama, LAYERS, DEGREES, stores)
        with Forked(launch, template) as engine:
            await asyncio.to_thread(engine.wait_ready)
            link = await LinkClient.connect(engine.address, TOKEN, policy=PATIENT)
            await until(lambda: link.state == STANDBY)
            assert not store.stats().leases
            assert store.stats().kv_capacity == 0, "it has practised on memory of its own"
            await link.activate()
            taken = await asyncio.to_thread(engine.event, 0, "active")
            assert min(float(taken["waited"]), float(taken["mapped"])) >= 0
            with kv_files(store.stats()) as files:
                assert sum(os.fstat(f.fileno()).st_size for f in files) >= launch.kv_bytes_on(1)
                assert not any(map(anything, files)), "what it wrote in practice is elsewhere"
            await until(lambda: link.load.tokens == 0 and link.load.kv_used == 0)
            (request,) = greedy_requests(1, llama.spec.vocab)
            (output,) = await together(link, [request])
            assert reference(llama).agrees(request, output)
            with kv_files(store.stats()) as files:
                assert any(map(anything, files)), "keys and values are in the store's memory"
            link.close()


async def test_one_that_ends_while_it_stands_by_disturbs_nobody(
    llama: StoredModel, template: TemplateForTests, tmp_path: Path
) -> None:
    with Stores(tmp_path, 2) as stores, StoreClient(stores.sockets[0]) as store:
        launch = launch_of(llama, LAYERS, DEGREES, stores, engine_id="old")
        async with serving(launch, template) as (_, link):
            streams = Streams(link)
            streams.submit(LONG)
            await until(lambda: len(streams.outputs["long"]) > 5)
            successor = launch_of(llama, LAYERS, DEGREES, stores, engine_id="new")
            with Forked(successor, template) as new:
                await asyncio.to_thread(new.wait_ready)
                again = await LinkClient.connect(new.address, TOKEN, policy=PATIENT)
                activating = asyncio.create_task(again.activate())
                await until(lambda: bool(store.stats().waiting))
                activating.cancel()
                again.close()
            await until(lambda: not store.stats().waiting)
            assert [lease.owner for lease in store.stats().leases] == ["old"]
            tokens = tuple(await streams.tokens("long"))
            output = evolve(await streams.finished["long"], tokens=tokens)
            assert reference(llama).agrees(LONG, output)
