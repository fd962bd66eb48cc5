"""One engine after another on the same stores, and engines that lose a rank."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from attrs import evolve

from shuntserve_core.interfaces.link import STANDBY
from shuntserve_core.link import LinkClient
from shuntserve_core.tensorstore import StoreClient
from shuntserve_core.types.request import EngineRequest, SamplingParams
from shuntserve_plugins.engines.vllm.engine import Vllm
from tests.plugins.engines.embedded.forked import TemplateForTests
from tests.plugins.engines.embedded.processes import (
    TOKEN,
    Stores,
    Streams,
    until,
)
from tests.plugins.engines.vllm.models import StoredModel, launch_of
from tests.plugins.engines.vllm.serving import PATIENT, Forked, reference, serving, shared_memory

pytestmark = pytest.mark.timeout(600)

LAYERS, DEGREES = [(0, 3), (3, 8)], [1, 1]
LONG = EngineRequest("long", (3, 1, 4, 1, 5), SamplingParams(max_tokens=400, temperature=0))


async def test_the_next_engine_takes_over_and_ends_when_a_rank_does(
    llama: StoredModel, template: TemplateForTests, tmp_path: Path
) -> None:
    """Nothing is read again, the stream goes on where it was, and a silent rank is a dead one."""
    with Stores(tmp_path, 2) as stores, StoreClient(stores.sockets[0]) as store:
        launch = launch_of(llama, LAYERS, DEGREES, stores, engine_id="old")
        async with serving(launch, template) as (old, link):
            before = store.stats()
            shared = shared_memory(old)
            assert len(shared) == 2, "the pipeline of a full grid has memory of its own"
            assert all(file.endswith("(deleted)") for file in shared), "survives a SIGKILL"
            successor = launch_of(llama, LAYERS, DEGREES, stores, engine_id="new")
            with Forked(successor, template, Vllm(silence_seconds=2.0)) as new:
                await asyncio.to_thread(new.wait_ready)
                next_link = await LinkClient.connect(new.address, TOKEN, policy=PATIENT)
                await until(lambda: next_link.state == STANDBY)
                activating = asyncio.create_task(next_link.activate())
                await until(lambda: bool(store.stats().waiting))
                assert store.stats().bytes_read == before.bytes_read
                streams = Streams(link)
                streams.submit(LONG)
                await until(lambda: len(streams.outputs["long"]) > 9)
                old.ranks[1].kill()  # the far one: rank 0 must notice by itself
                await activating
                assert [lease.owner for lease in store.stats().leases] == ["new"]
                assert await asyncio.to_thread(old.ranks[0].wait, 10) == 1
                had = tuple(streams.outputs["long"])
                resuming = Streams(next_link)
                resuming.submit(evolve(LONG, output=had))
                tokens = await resuming.tokens("long")
                output = await resuming.finished["long"]
                assert reference(llama).agrees(LONG, evolve(output, tokens=tokens[:100]))
                os.kill(new.ranks[1].pid, signal.SIGSTOP)
                assert await asyncio.to_thread(new.ranks[0].wait, 20) == 1
                os.kill(new.ranks[1].pid, signal.SIGCONT)
                assert await asyncio.to_thread(new.ranks[1].wait, 20) is not None
                next_link.close()
            assert store.stats().bytes_read == before.bytes_read
