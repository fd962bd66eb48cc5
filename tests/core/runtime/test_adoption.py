"""A control plane that is killed: the next one finds what runs, or what runs ends by itself."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psutil
import pytest
import torch

from shuntserve_core.testing.chaos.client import ask
from shuntserve_core.testing.chaos.cluster import serving
from shuntserve_core.testing.chaos.requests import requests
from shuntserve_core.testing.models import write_tokenizer
from tests.core.runtime.clusters import write_config
from tests.core.runtime.test_chaos import EMBEDDED
from tests.plugins.engines.embedded.models import build

pytestmark = pytest.mark.timeout(150)


async def test_embedded_engines_are_adopted_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    model = build("llama", tmp_path, torch.float16)
    write_tokenizer(model.directory, vocab_size=1100)
    config = tmp_path / "cluster.toml"
    config.write_text(EMBEDDED.format(name=model.name))
    asked, long = requests("llama", "seeded", 24)[0], requests("llama", "seeded", 200)[0]
    async with serving(config, tmp_path / "state", tmp_path / "serve.log") as first:
        before = await first.status()
        said = await ask(first.session, first.url, asked)
        assert said.complete, said.error
        cut = asyncio.create_task(ask(first.session, first.url, long))
        while not (await first.status())["requests"]["counters"]["output_tokens"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        first.process.send_signal(signal.SIGKILL)
        assert not (await cut).done
        async with serving(config, tmp_path / "state", tmp_path / "serve.log") as second:
            after = await second.status()
            engines = [{run["engine_id"] for run in s["pipelines"]} for s in (before, after)]
            assert engines[0] == engines[1]
            assert not any(node["weights_read_bytes"] for node in after["nodes"])
            assert (await ask(second.session, second.url, asked)).same_as(said)
            assert (await second.status())["requests"]["in_flight"] == 0


async def test_agents_without_a_control_plane_end_by_themselves(tmp_path: Path) -> None:
    config = write_config(tmp_path, engine="tpot = 0.02\nttft = 0.02\nthroughput = 0")
    launcher = '[launcher]\nname = "local"\norphan_seconds = 3\n'
    config.write_text(config.read_text() + f"\n[frontdoor]\nport = 0\n{launcher}")
    write_tokenizer(tmp_path / "model", vocab_size=512)
    async with serving(config, tmp_path / "state", tmp_path / "serve.log") as served:
        await asyncio.sleep(4.0)  # for as long as it is there, nobody is an orphan
        processes = served.processes()
        assert len(processes) > 6
        served.process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(processes, timeout=30)
        assert not alive
