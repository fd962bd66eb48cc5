"""What the configuration says of notices and plugins reaches every node."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shuntserve_core.config import load_config
from shuntserve_core.node.watching import SpotWatch
from shuntserve_core.registry import Registry
from shuntserve_core.runtime.watches import default_notice, watches_of
from tests.core.runtime.clusters import tiny_config, write_config
from tests.core.runtime.test_manager import Rig, Stage
from tests.core.runtime.virtual_time import EPOCH

SPOT = """
[[spot]]
name = "aws"
interval = 2
default_notice = 30

[[spot]]
name = "trace"
file = "trace.csv"
default_notice = 50
"""


def config_file(folder: Path) -> Path:
    file = write_config(folder)
    file.write_text(file.read_text() + SPOT)
    return file


def test_sources_on_nodes_are_told_apart(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path))
    defaults = {"endpoint": "http://169.254.169.254", "timeout": 2.0}
    assert watches_of(config) == (SpotWatch("aws", {"interval": 2.0, **defaults}, 30.0),)
    assert [default_notice(config, name) for name in ("aws", "trace", "")] == [30.0, 50.0, 120.0]
    assert watches_of(tiny_config(tmp_path)) == ()


def test_every_node_is_told_before_it_is_up(tmp_path: Path) -> None:
    registry = Registry(disabled=["bundled-storage"])
    config = load_config(config_file(tmp_path), registry)

    async def story(rig: Rig) -> None:
        rig.tell("big#0", "lost")
        await asyncio.sleep(5)
        rig.tell("big#0", "restored")
        await asyncio.sleep(5)
        assert len(rig.world.processes) == 5
        for process in rig.world.processes.values():
            assert process.disabled == ("bundled-storage",)
            assert [watch.default_notice for watch in process.watches] == [30.0]
        node = rig.cluster.nodes["small#0"]
        spot = {"node": "small#0", "kind": "notice", "deadline": None, "source": "aws"}
        rig.manager.membership._on_agent_event(node, {"event": "spot", "spot": spot})
        assert node.deadline is not None
        assert round(node.deadline - EPOCH - asyncio.get_running_loop().time()) == 30
        failed = {"event": "spot-failed", "source": "aws", "reason": "it is gone"}
        rig.manager.membership._on_agent_event(node, failed)
        assert [note["what"] for note in rig.cluster.history][-1] == "spot source failed"

    Stage(config).play(story)
