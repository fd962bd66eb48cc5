"""The contract of spot sources: subclass `SpotSourceContract` and fill in its fixtures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shuntserve_core.interfaces.cloud import SpotSource
from shuntserve_core.types.spot import EVENT_KINDS, SpotEvent


class SpotSourceContract:
    """What every spot source must do.

    The fixture `source` is one that will say something about the node `NODE` within
    `SECONDS`.
    """

    NODE = "node#0"
    SECONDS = 10.0

    @pytest.fixture
    def source(self) -> SpotSource:
        """The source to test."""
        raise NotImplementedError("override the fixture `source`")

    async def _first(self, source: SpotSource) -> SpotEvent:
        events: AsyncIterator[SpotEvent] = source.events((self.NODE,))
        return await asyncio.wait_for(anext(events), self.SECONDS)

    async def test_it_says_where_it_runs(self, source: SpotSource) -> None:
        """`on_node` decides who starts it."""
        assert isinstance(source.on_node, bool)

    async def test_events_are_of_a_known_kind_and_node(self, source: SpotSource) -> None:
        """Words that the manager understands, about nodes that it was asked about."""
        event = await self._first(source)
        assert event.kind in EVENT_KINDS
        assert event.node == self.NODE

    async def test_it_can_be_cancelled_while_it_waits(self, source: SpotSource) -> None:
        """A control plane that ends must not hang on a source."""

        async def listen() -> None:
            async for _ in source.events((self.NODE,)):
                pass

        task = asyncio.create_task(listen())
        await asyncio.sleep(0.05)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=2.0)
        assert done

    async def test_it_can_be_listened_to_twice(self, source: SpotSource) -> None:
        """State belongs to one listening, not to the source."""
        first = await self._first(source)
        assert (await self._first(source)).kind == first.kind
