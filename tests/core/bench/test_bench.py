"""The load generator against a small OpenAI endpoint, and its figures against hand-made ones."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from shuntserve_core.bench.arrivals import Arrival, Lengths, closed, poisson, replay
from shuntserve_core.bench.calls import Endpoint, Result
from shuntserve_core.bench.load import model_of, run
from shuntserve_core.bench.report import COLUMNS, spread, summary, write_csv
from shuntserve_core.cli.bench import _url, bench
from shuntserve_core.errors import UserError
from shuntserve_core.registry import Registry


class Server:
    """Streams as many tokens as are asked for; prompts that begin with 666 go wrong."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.running = self.most = 0

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny"}]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if body["max_tokens"] == 13:
            return web.json_response({"error": {"message": "no"}}, status=400)
        self.running += 1
        self.most = max(self.most, self.running)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(body["max_tokens"]):
            await self._event(response, {"choices": [{"text": "x"}]})
            await asyncio.sleep(0)
        if body["max_tokens"] == 7:
            await self._event(response, {"error": {"message": "engine gone"}})
        usage = {"completion_tokens": body["max_tokens"]}
        await self._event(response, {"choices": [], "usage": usage})
        if body["max_tokens"] not in (7, 8):
            await response.write(b"data: [DONE]\n\n")
        self.running -= 1
        return response

    async def _event(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@pytest.fixture
async def endpoint() -> AsyncIterator[tuple[Server, Endpoint]]:
    server = Server()
    app = web.Application()
    app.add_routes(
        [web.get("/v1/models", server.models), web.post("/v1/completions", server.complete)]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server, Endpoint(url, await model_of(url, ""))
    await runner.cleanup()


async def load(endpoint: Endpoint, arrivals: Any, concurrency: int = 4) -> list[Result]:
    return await run(endpoint, arrivals, concurrency=concurrency, request_seconds=30, seed=1)


async def test_a_closed_loop_keeps_so_many_under_way(endpoint: tuple[Server, Endpoint]) -> None:
    server, target = endpoint
    results = await load(target, closed(20, Lengths(5, 6), seed=1))
    assert [r.request_id for r in results] == list(range(20))
    assert all(r.success and r.output_tokens == 6 for r in results)
    assert 1 < server.most <= 4
    assert all(len(body["prompt"]) == 5 for body in server.bodies)
    assert server.bodies[0]["min_tokens"] == 6
    assert all(0 < (r.ttft or 0) <= r.latency for r in results)


async def test_prompts_are_the_same_for_the_same_seed(endpoint: tuple[Server, Endpoint]) -> None:
    server, target = endpoint
    for _ in range(2):
        await load(target, closed(3, Lengths(9, 1), seed=1), concurrency=1)
    prompts = [tuple(body["prompt"]) for body in server.bodies]
    assert prompts[:3] == prompts[3:]
    assert len(set(prompts)) == 3


async def test_an_open_loop_counts_from_when_it_should_have_sent(
    endpoint: tuple[Server, Endpoint],
) -> None:
    _, target = endpoint
    late = [Arrival(0, 0.0, 4, 2), Arrival(1, -5.0, 4, 2)]
    results = await load(target, late)
    assert results[1].latency > 5
    assert results[0].arrival == 0.0


async def test_whatever_goes_wrong_is_a_failure(endpoint: tuple[Server, Endpoint]) -> None:
    _, target = endpoint
    arrivals = [Arrival(i, 0.0, 4, n) for i, n in enumerate((13, 7, 8, 5))]
    results = await load(target, arrivals)
    assert [r.error for r in results] == [
        "HTTP 400",
        "engine gone",
        "stream ended without [DONE]",
        "",
    ]
    gone = Endpoint("http://127.0.0.1:1", "tiny")
    (result,) = await load(gone, [Arrival(0, 0.0, 1, 1)])
    assert not result.success


async def test_nobody_there_is_one_line() -> None:
    with pytest.raises(UserError, match="OpenAI endpoint"):
        await model_of("http://127.0.0.1:1", "")


def test_poisson_arrivals_have_the_rate() -> None:
    times = [arrival.at or 0.0 for arrival in poisson(4000, 10.0, Lengths(1, 1), seed=3)]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(400, rel=0.05)


def test_lengths_spread_around_their_mean() -> None:
    drawn = [a.input_tokens for a in closed(500, Lengths(100, 1, 0.5), seed=1)]
    assert min(drawn) >= 50
    assert max(drawn) <= 150
    assert sum(drawn) / 500 == pytest.approx(100, rel=0.05)


def test_a_trace_is_replayed_to_scale(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
    )
    first, second = replay(trace, 0.5, None)
    assert (first.at, first.input_tokens, first.output_tokens) == (0.0, 374, 44)
    assert second.at == pytest.approx(4.314579 / 2, abs=1e-5)
    assert len(list(replay(trace, 1.0, 1))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TIMESTAMP,ContextTokens\n1,2\n", "no column GeneratedTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n0,1,1\n1,x,2\n", "line 3"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,2\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n0,1,-2\n", "line 2.*from 0 to.*leave it out"),
        ("", "no requests; give rows with"),
    ],
)
def test_a_broken_trace_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(text)
    with pytest.raises(UserError, match=message):
        list(replay(trace, 1.0, None))


def test_the_summary_is_right() -> None:
    results = [
        Result(
            i,
            arrival=float(i),
            input_tokens=10,
            output_tokens=5,
            first=i + 0.5,
            completion=i + 1.0 + i / 100,
            success=True,
        )
        for i in range(100)
    ]
    results.append(Result(100, 50.0, 10, completion=51.0, error="HTTP 503"))
    report = summary(results)
    assert (report["requests"], report["succeeded"], report["failed"]) == (101, 100, 1)
    assert report["errors"] == {"HTTP 503": 1}
    assert report["seconds"] == pytest.approx(100.99)
    assert report["output_tokens_per_second"] == pytest.approx(500 / 100.99)
    assert report["latency"]["p50"] == pytest.approx(1.49)
    assert report["latency"]["p99"] == pytest.approx(1.98)
    assert report["latency"]["max"] == pytest.approx(1.99)
    assert report["ttft"]["p95"] == pytest.approx(0.5)
    assert report["tpot"]["max"] == pytest.approx((0.5 + 0.99) / 4)
    assert spread([]) == {}


def test_the_csv_has_the_columns_and_leaves_out_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_csv(path, [Result(0, 1.0, 3, completion=2.5, error="HTTP 500")])
    (row,) = csv.DictReader(path.read_text().splitlines())
    assert tuple(row) == COLUMNS
    assert row["Latency"] == "1.500000"
    assert (row["TTFT"], row["TPOT"], row["Success"]) == ("", "", "False")


async def test_the_command_writes_csv_and_json(
    endpoint: tuple[Server, Endpoint], tmp_path: Path
) -> None:
    _, target = endpoint
    path = tmp_path / "out.csv"
    arguments = [f"{target.url}/v1/", "-n", "5", "--output-tokens", "4", "-o", str(path), "--json"]
    result = await asyncio.to_thread(CliRunner().invoke, bench, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["succeeded"] == 5
    assert len(path.read_text().splitlines()) == 6
    arguments = [target.url, "-n", "2", "--rate", "100", "--output-tokens", "13"]
    result = await asyncio.to_thread(CliRunner().invoke, bench, arguments)
    assert result.exit_code == 1
    assert "2 failed: HTTP 400" in result.output


def test_a_configuration_says_where_it_listens(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[frontdoor]\nhost = "0.0.0.0"\nport = 8123\n')
    assert _url(str(config), Registry()) == "http://127.0.0.1:8123"
    with pytest.raises(UserError, match="expected a URL"):
        _url(str(tmp_path / "none.toml"), Registry())
