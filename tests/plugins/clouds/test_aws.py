from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from shuntserve_core.testing.clouds import SpotSourceContract
from shuntserve_core.testing.ec2_metadata import Ec2Metadata
from shuntserve_core.types.spot import SpotEvent
from shuntserve_plugins.clouds.aws import InstanceMetadata


@pytest.fixture
async def metadata() -> AsyncIterator[Ec2Metadata]:
    service = Ec2Metadata()
    yield service
    await service.close()


async def listen(metadata: Ec2Metadata) -> AsyncIterator[SpotEvent]:
    url = await metadata.start()
    return InstanceMetadata(url, interval=0.02, timeout=0.5).events(("n#0",))


async def silent(events: AsyncIterator[SpotEvent], seconds: float = 0.2) -> None:
    waiting = asyncio.ensure_future(anext(events))
    done, _ = await asyncio.wait({waiting}, timeout=seconds)
    assert not done, waiting.result()
    waiting.cancel()


class TestContract(SpotSourceContract):
    NODE = "n#0"

    @pytest.fixture
    async def source(self, metadata: Ec2Metadata) -> InstanceMetadata:  # type: ignore[override]
        metadata.action = "terminate"
        return InstanceMetadata(await metadata.start(), interval=0.02)


async def test_a_notice_is_told_once_with_its_deadline(metadata: Ec2Metadata) -> None:
    metadata.action, metadata.action_in = "terminate", 90.0
    events = await listen(metadata)
    event = await anext(events)
    assert (event.node, event.kind) == ("n#0", "notice")
    assert event.deadline is not None
    assert 85 < event.deadline - time.time() < 91
    await silent(events)


async def test_a_withdrawn_notice_is_told_and_a_new_one_too(metadata: Ec2Metadata) -> None:
    metadata.action = "stop"
    events = await listen(metadata)
    assert (await anext(events)).kind == "notice"
    metadata.action = None
    assert (await anext(events)).kind == "withdrawn"
    metadata.action = "terminate"
    assert (await anext(events)).kind == "notice"


async def test_rebalance_comes_alone_or_before_a_notice(metadata: Ec2Metadata) -> None:
    metadata.rebalance = True
    events = await listen(metadata)
    assert (await anext(events)).kind == "rebalance"
    metadata.action = "terminate"
    assert (await anext(events)).kind == "notice"


async def test_hibernation_has_no_lead_time(metadata: Ec2Metadata) -> None:
    metadata.action = "hibernate"
    event = await anext(await listen(metadata))
    assert event.deadline is not None
    assert event.deadline <= time.time()


async def test_a_service_that_fails_is_no_withdrawal(metadata: Ec2Metadata) -> None:
    metadata.action = "terminate"
    events = await listen(metadata)
    assert (await anext(events)).kind == "notice"
    metadata.status = 500
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.15)
    assert not waiting.done()
    metadata.status = None
    await asyncio.sleep(0.1)
    assert not waiting.done()
    metadata.action = None
    assert (await waiting).kind == "withdrawn"


async def test_an_expired_token_is_renewed(metadata: Ec2Metadata) -> None:
    metadata.token_seconds = 0.05
    events = await listen(metadata)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.2)
    metadata.action = "terminate"
    assert (await asyncio.wait_for(waiting, 2.0)).kind == "notice"
    assert metadata.requests.count("/latest/api/token") > 1


async def test_tokens_are_kept_while_they_last(metadata: Ec2Metadata) -> None:
    events = await listen(metadata)
    await silent(events, 0.3)
    assert metadata.requests.count("/latest/api/token") == 1
    assert len(metadata.requests) > 5


async def test_nobody_there_is_survived() -> None:
    events = InstanceMetadata("http://127.0.0.1:9", interval=0.02, timeout=0.2).events(("n#0",))
    await silent(events, 0.3)
