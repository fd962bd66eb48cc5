"""Other people's spot traces as events."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from shuntserve_core.config import load_config
from shuntserve_core.errors import UserError
from shuntserve_core.traces.events import TraceEvent
from shuntserve_core.traces.spot import read_any_events, read_spotlake
from shuntserve_core.types import Cluster
from tests.core.simulator.configs import write

SPOTSERVE = """# made up
[0, "add", {"nodes": ["node-0", "node-1", "node-2"]}]
[60000, "remove", {"nodes": ["node-1"]}]
[90000, "add", {"nodes": ["node-3", "node-4"]}]
[120000, "DONE", {"nodes": []}]
"""
SPOTLAKE = """Time,InstanceType,Region,AZ,SPS,T3,T2,IF,OndemandPrice,SpotPrice,Savings
2025-01-01 00:00:00,one,r,a,3,50,50,3.0,2.0,0.5,75
2025-01-01 00:00:00,one,r,b,1,0,0,3.0,2.0,0.4,80
2025-01-01 00:10:00,one,r,a,3,1,5,3.0,2.0,,
2025-01-01 00:10:00,other,r,a,3,1,5,3.0,2.0,0.5,75
2025-01-01 00:20:00,one,r,a,,,,3.0,2.0,0.5,75
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """Four nodes of one type."""
    return load_config(write(tmp_path)).cluster


def told(events: tuple[TraceEvent, ...]) -> list[tuple[float, str, str]]:
    return [(event.at, event.node, event.kind) for event in events]


def test_skypilot(tmp_path: Path, cluster: Cluster) -> None:
    file = tmp_path / "zone.json"
    file.write_text(json.dumps({"metadata": {"gap_seconds": 300}, "data": [8, 8, 5, 0, 8]}))
    assert told(read_any_events(file, cluster)) == [
        (600.0, "one#3", "notice"),
        (600.0, "one#2", "notice"),
        (900.0, "one#1", "notice"),
        (900.0, "one#0", "notice"),
        *((1200.0, f"one#{i}", "restored") for i in range(4)),
    ]


def test_spotserve(tmp_path: Path, cluster: Cluster) -> None:
    file = tmp_path / "segment.txt"
    file.write_text(SPOTSERVE)
    assert told(read_any_events(file, cluster)) == [
        (0.0, "one#3", "lost"),  # the trace begins with three
        (60.0, "one#1", "notice"),
        (90.0, "one#3", "restored"),
        (90.0, "one#1", "restored"),
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_spotlake(tmp_path: Path, cluster: Cluster, packed: bool) -> None:
    file = tmp_path / ("a.csv.gz" if packed else "a.csv")
    file.write_bytes(gzip.compress(SPOTLAKE.encode()) if packed else SPOTLAKE.encode())
    assert told(read_any_events(file, cluster)) == [
        (600.0, "one#3", "notice"),
        (600.0, "one#2", "notice"),
        (600.0, "one#1", "notice"),
        (1200.0, "one#0", "notice"),
    ]
    prices = [row.spot_price for row in read_spotlake(file) if row.zone == "r/a"]
    assert prices == [0.5, None, 0.5, 0.5]


def test_our_own_form_with_markets(tmp_path: Path, cluster: Cluster) -> None:
    file = tmp_path / "own.csv"
    file.write_text("# why\nat,node,kind,notice,market\n5,one#0,restored,,on-demand\n")
    assert read_any_events(file, cluster) == (
        TraceEvent(5.0, "one#0", "restored", None, "on-demand"),
    )
    file.write_text("# why\nat,node,kind,notice,market\n5,one#0,restored,,spott\n")
    with pytest.raises(UserError, match=r"line 3.*spot"):
        read_any_events(file, cluster)


@pytest.mark.parametrize("text", ['{"data": []}', '[1, "add"]', "Time,InstanceType\nx,one\n"])
def test_broken(tmp_path: Path, cluster: Cluster, text: str) -> None:
    file = tmp_path / "broken"
    file.write_text(text)
    with pytest.raises(UserError):
        read_any_events(file, cluster)
