"""The whole control plane as a process of its own, with simulated engines."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shuntserve_core.testing.chaos.client import Answer, ask
from shuntserve_core.testing.chaos.cluster import Served, serving
from shuntserve_core.testing.chaos.disturbances import settled
from shuntserve_core.testing.chaos.requests import Asked
from shuntserve_core.testing.models import write_tokenizer
from tests.core.runtime.clusters import write_config

pytestmark = pytest.mark.timeout(90)


def story(tokens: int = 60, **extra: Any) -> Asked:
    body = {
        "model": "tiny",
        "prompt": [5, 6, 7],
        "max_tokens": tokens,
        "min_tokens": tokens,
        "temperature": 0.8,
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        **extra,
    }
    return Asked("story", "/v1/completions", body)


@contextlib.asynccontextmanager
async def cluster(
    directory: Path, *, serve: str = "", engine: str = "tpot = 0.02\nttft = 0.02\nthroughput = 0"
) -> AsyncIterator[Served]:
    config = write_config(directory, serve=serve, engine=engine)
    config.write_text(config.read_text() + "\n[frontdoor]\nport = 0\n")
    write_tokenizer(directory / "model", vocab_size=512)
    async with serving(config, directory / "state", directory / "serve.log") as served:
        yield served


async def wait_for(served: Served, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while True:
            status = await served.status()
            if holds(status):
                return status
            await asyncio.sleep(0.05)


def serving_runs(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [run for run in status["pipelines"] if run["state"] == "serving"]


def says(status: dict[str, Any], what: str) -> bool:
    return any(line["what"] == what for line in status["history"])


async def streams(served: Served, count: int) -> list[asyncio.Task[Answer]]:
    return [
        asyncio.create_task(ask(served.session, served.url, story(seed=i))) for i in range(count)
    ]


async def twins(served: Served, answers: list[Answer]) -> None:
    """Each answer must be what an undisturbed stream says."""
    for index, answer in enumerate(answers):
        assert answer.complete, answer.error
        again = await ask(served.session, served.url, story(seed=index))
        assert answer.same_as(again)
        assert answer.usage == {"prompt_tokens": 3, "completion_tokens": 60}


async def busiest(served: Served) -> dict[str, Any]:
    status = await wait_for(served, lambda s: any(run["running"] for run in serving_runs(s)))
    return max(serving_runs(status), key=lambda run: int(run["running"]))


async def test_a_notice_moves_streams_to_a_successor(tmp_path: Path) -> None:
    async with cluster(tmp_path) as served:
        tasks = await streams(served, 6)
        run = await busiest(served)
        node = run["stages"][0]["node"]
        await served.tell(node, "notice", 5.0)
        answers = await asyncio.gather(*tasks)
        status = await wait_for(served, lambda s: says(s, "node lost"))
        assert run["name"] not in {r["name"] for r in status["pipelines"]}
        assert status["requests"]["counters"]["migrated_unplanned"] == 0
        assert status["requests"]["in_flight"] == 0
        await twins(served, list(answers))


async def test_a_switch_is_timed_part_by_part(tmp_path: Path) -> None:
    """A pipeline that loses one of two nodes: its successor waits for the GPUs of the other."""
    async with cluster(tmp_path) as served:
        runs = serving_runs(await served.status())
        run = next(run for run in runs if len({s["node"] for s in run["stages"]}) > 1)
        node = next(s["node"] for s in run["stages"] if s["node"].startswith("small"))
        tasks = await streams(served, 12)
        await served.tell(node, "notice", 5.0)
        await asyncio.gather(*tasks)
        await wait_for(served, lambda s: any(run["switch"] for run in serving_runs(s)))
        await streams(served, 12)  # so that the new one has something to say
        status = await wait_for(served, lambda s: says(s, "first token after the switch"))
        successor = next(run["switch"] for run in serving_runs(status) if run["switch"])
        assert successor.keys() == {"end", "ready", "first_token", "gap"}
        assert successor["gap"] == successor["ready"] + successor["first_token"]
        line = next(n for n in status["history"] if n["what"] == "first token after the switch")
        assert line["seconds"] == successor
        assert sum(status["requests"]["durations"]["switch"]["gap"]["counts"]) == 1
        async with served.session.get(f"{served.url}/metrics") as response:
            page = await response.text()
        for part in successor:
            assert f'shuntserve_switch_seconds_count{{part="{part}"}} 1.0' in page


async def test_a_loss_without_notice_and_the_return(tmp_path: Path) -> None:
    async with cluster(tmp_path) as served:
        before = len(serving_runs(await served.status()))
        tasks = await streams(served, 6)
        node = (await busiest(served))["stages"][0]["node"]
        await served.tell(node, "lost")
        answers = await asyncio.gather(*tasks)
        await served.tell(node, "restored")
        await settled(served, 30)
        status = await wait_for(served, lambda s: len(serving_runs(s)) >= before)
        assert status["requests"]["counters"]["migrated_unplanned"] > 0
        await twins(served, list(answers))


async def test_repeated_and_withdrawn_notices(tmp_path: Path) -> None:
    async with cluster(tmp_path) as served:
        status = await served.status()
        node = serving_runs(status)[0]["stages"][0]["node"]
        for _ in range(3):
            await served.tell(node, "notice", 2.0)
        await served.tell(node, "withdrawn")
        await asyncio.sleep(3.0)
        await settled(served, 30)
        status = await served.status()
        assert not says(status, "node lost")
        assert sum(line["what"] == "interruption notice" for line in status["history"]) == 1


async def test_killed_processes_are_replaced(tmp_path: Path) -> None:
    async with cluster(tmp_path) as served:
        tasks = await streams(served, 6)
        await busiest(served)
        for process in served.named("simulated_worker")[:1]:
            process.kill()
        answers = await asyncio.gather(*tasks)
        await settled(served, 30)
        await twins(served, list(answers))


@pytest.mark.parametrize("strategy", ["concurrent-init", "migration", "none"])
async def test_the_other_strategies_lose_nothing_either(tmp_path: Path, strategy: str) -> None:
    async with cluster(tmp_path, serve=f'strategy = "{strategy}"') as served:
        tasks = await streams(served, 6)
        node = (await busiest(served))["stages"][0]["node"]
        await served.tell(node, "notice", 1.0)
        answers = await asyncio.gather(*tasks)
        await twins(served, list(answers))


async def test_without_any_pipeline_requests_wait_and_then_fail(tmp_path: Path) -> None:
    async with cluster(tmp_path, serve="queue = 1\nqueue_seconds = 1.5") as served:
        names = [node["name"] for node in (await served.status())["nodes"]]
        for name in names:
            await served.tell(name, "lost")
        await wait_for(served, lambda s: not serving_runs(s))
        assert (await served.session.get(f"{served.url}/ready")).status == 503
        waiting = asyncio.create_task(ask(served.session, served.url, story()))
        await wait_for(served, lambda s: s["requests"]["waiting"] == 1)
        refused = await served.session.post(served.url + story().path, json=dict(story().body))
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert "status 503" in (await waiting).error
        for name in names:
            await served.tell(name, "restored")
        await settled(served, 30)
        assert (await ask(served.session, served.url, story())).complete


async def test_a_killed_control_plane_finds_its_engines_again(tmp_path: Path) -> None:
    async with cluster(tmp_path) as first:
        before = await first.status()
        first.process.send_signal(signal.SIGKILL)
        await first.process.wait()
        async with serving(
            tmp_path / "cluster.toml", tmp_path / "state", tmp_path / "serve.log"
        ) as second:
            after = await second.status()
            assert says(after, "engine adopted")
            for key in ("name", "engine_id", "stages"):
                was = sorted(str(run[key]) for run in before["pipelines"])
                assert sorted(str(run[key]) for run in after["pipelines"]) == was
            assert (await ask(second.session, second.url, story())).complete
            processes = second.processes()
        assert not [p for p in processes if p.is_running() and p.status() != "zombie"]


async def test_a_second_control_plane_is_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path):
        with pytest.raises(RuntimeError):
            async with serving(
                tmp_path / "cluster.toml", tmp_path / "state", tmp_path / "second.log"
            ):
                pass
        assert "running already" in (tmp_path / "second.log").read_text()


async def test_strangers_are_turned_away(tmp_path: Path) -> None:
    async with cluster(tmp_path) as served:
        for node in (await served.status())["nodes"]:
            async with served.session.get(node["url"] + "/v1/node") as response:
                assert response.status == 401
        with pytest.raises(aiohttp.ClientResponseError):
            await served.tell("nowhere#0", "lost")


async def test_sigterm_lets_streams_finish(tmp_path: Path) -> None:
    async with cluster(tmp_path) as served:
        tasks = await streams(served, 3)
        await busiest(served)
        served.process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*tasks)
        assert all(answer.complete for answer in answers)
        assert await served.process.wait() == 0


async def test_the_length_of_a_drain_is_set(tmp_path: Path) -> None:
    slow = "tpot = 1.0\nttft = 0.02\nthroughput = 0"
    async with cluster(tmp_path, serve="drain_seconds = 0.2", engine=slow) as served:
        tasks = await streams(served, 2)
        await busiest(served)
        served.process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*tasks)
        assert not any(answer.done for answer in answers)
        assert all("shutting_down" in answer.error for answer in answers)
        assert await served.process.wait() == 0


async def test_metrics_tell_what_happened(tmp_path: Path) -> None:
    async with cluster(tmp_path) as served:
        tasks = await streams(served, 6)
        node = (await busiest(served))["stages"][0]["node"]
        await served.tell(node, "lost")
        await asyncio.gather(*tasks)
        async with served.session.get(f"{served.url}/metrics") as response:
            page = (await response.text()).splitlines()
    samples = {
        family: float(value)
        for family, value in (line.rsplit(" ", 1) for line in page if not line.startswith("#"))
    }
    moved = samples['shuntserve_migrations_total{kind="unplanned"}']
    assert moved > 0
    assert samples['shuntserve_stall_seconds_count{kind="unplanned"}'] == moved
    assert samples["shuntserve_queue_seconds_count"] == 6
    assert samples['shuntserve_nodes{state="lost"}'] == 1
    assert samples['shuntserve_transitions_total{new="lost",old="up"}'] == 1
    assert samples[f'shuntserve_weights_read_bytes_total{{node="{node}"}}'] == 0
    assert samples["shuntserve_dollars_per_hour"] > 0
