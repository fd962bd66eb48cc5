from __future__ import annotations

import time
from pathlib import Path

import pytest

from shuntserve_core.testing.clouds import SpotSourceContract
from shuntserve_plugins.clouds.trace import TraceReplay

CSV = "at,node,kind,notice\n2,b#0,lost,\n0,a#0,notice,30\n4,a#0,restored,\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "events.csv"
    path.write_text(CSV)
    return path


class TestContract(SpotSourceContract):
    NODE = "a#0"

    @pytest.fixture
    def source(self, file: Path) -> TraceReplay:
        return TraceReplay(file, time_scale=100.0)


async def test_events_come_in_order_and_on_time(file: Path) -> None:
    start = time.time()
    events = [event async for event in TraceReplay(file, time_scale=20.0).events(())]
    assert [(e.node, e.kind) for e in events] == [
        ("a#0", "notice"),
        ("b#0", "lost"),
        ("a#0", "restored"),
    ]
    assert time.time() - start >= 4 / 20
    assert events[0].deadline is not None
    assert events[0].deadline - start == pytest.approx(30 / 20, abs=0.1)
    assert all(event.enforced for event in events)
