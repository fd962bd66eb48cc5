"""The dispatcher over real links to engine processes that are really killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest

from shuntserve_core.journal import Journal
from shuntserve_core.link import LinkClient
from shuntserve_core.runtime.dispatcher import Dispatcher
from shuntserve_core.types.request import SamplingParams
from shuntserve_plugins.balancers.weighted import WeightedRoundRobin
from shuntserve_plugins.engines.simulated import SimulatedSpec
from shuntserve_plugins.engines.simulated_steps import made_up_output
from tests.core.runtime.fake_links import Listener

VOCAB = 5000
SPEC = SimulatedSpec("e", "tiny", VOCAB, 64, 4096, "secret", "127.0.0.1", 0.005, 0.005, 0.0, 1, 0.0)


@contextmanager
def engine(name: str) -> Iterator[tuple[int, str]]:
    """A simulated engine's process: its id and its link's address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shuntserve_plugins.engines.simulated_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(attrs.asdict(attrs.evolve(SPEC, engine_id=name))) + "\n")
    process.stdin.flush()
    try:
        yield process.pid, json.loads(process.stdout.readline())["address"]
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


class Waiter(Listener):
    """A sink that somebody awaits."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self.done = asyncio.Event()

    def on_output(self, output: object) -> None:
        super().on_output(output)  # type: ignore[arg-type]
        if self.outcome is not None:
            self.done.set()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
async def test_no_stream_notices_that_its_engine_is_gone(number: signal.Signals) -> None:
    dispatcher = Dispatcher(WeightedRoundRobin())
    with engine("a") as (dying, first), engine("b") as (_, second):
        links = [await LinkClient.connect(address, "secret") for address in (first, second)]
        for name, link in zip("ab", links, strict=True):
            await link.activate()
            dispatcher.add_pipeline(name, link, 1.0, 64)
        waiters = []
        for i in range(24):
            sampling = SamplingParams(max_tokens=150, seed=i, min_tokens=150)
            waiters.append(Waiter(Journal(f"r{i}", (i, 1, 2), sampling)))
            dispatcher.submit(waiters[-1].journal, waiters[-1])
        while not all(len(waiter.tokens) > 10 for waiter in waiters):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        os.kill(dying, number)
        async with asyncio.timeout(60):
            await asyncio.gather(*(waiter.done.wait() for waiter in waiters))
        assert links[0].lost is not None
        assert dispatcher.in_flight == 0
        assert dispatcher.counters.migrated == {"unplanned": 12}
        for waiter in waiters:
            journal = waiter.journal
            assert waiter.outcome == "length"
            assert waiter.tokens == made_up_output(journal.prompt, journal.sampling, VOCAB)
        for link in links:
            link.close()


async def test_migration_to_and_fro_keeps_every_token() -> None:
    dispatcher = Dispatcher(WeightedRoundRobin())
    with engine("a") as (_, first), engine("b") as (_, second):
        links = [await LinkClient.connect(address, "secret") for address in (first, second)]
        for name, link in zip("ab", links, strict=True):
            await link.activate()
            dispatcher.add_pipeline(name, link, 1.0, 64)
        sampling = SamplingParams(max_tokens=200, min_tokens=200)
        waiter = Waiter(Journal("r", (1, 2), sampling))
        dispatcher.submit(waiter.journal, waiter)
        for turn in range(8):
            seen = len(waiter.tokens)
            while len(waiter.tokens) < seen + 5:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            dispatcher.migrate("ab"[turn % 2])
            dispatcher.admit_pipeline("ab"[turn % 2])
        async with asyncio.timeout(60):
            await waiter.done.wait()
        assert waiter.tokens == made_up_output((1, 2), sampling, VOCAB)
        assert waiter.journal.attempts > 2
        for link in links:
            link.close()
