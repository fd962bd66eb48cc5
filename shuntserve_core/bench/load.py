"""Running a load: a closed loop, or one that sends on time whatever the server does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

import aiohttp

from shuntserve_core.bench.arrivals import Arrival
from shuntserve_core.bench.calls import Endpoint, Result, call
from shuntserve_core.errors import UserError


async def run(
    endpoint: Endpoint,
    arrivals: Iterable[Arrival],
    *,
    concurrency: int,
    request_seconds: float,
    seed: int,
    on_result: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """All results, in the order of arrival.

    Arrivals without a time are sent by `concurrency` workers; the others when their time comes,
    however many are under way.  `request_seconds` is the longest that one may take.
    """
    connector = aiohttp.TCPConnector(limit=0)
    limits = aiohttp.ClientTimeout(total=request_seconds)
    async with aiohttp.ClientSession(connector=connector, timeout=limits) as session:
        start = time.perf_counter()
        results: list[Result] = []

        async def one(arrival: Arrival) -> None:
            result = await call(session, endpoint, arrival, start, seed)
            results.append(result)
            on_result(result)

        source = iter(arrivals)
        async with asyncio.TaskGroup() as group:
            for arrival in source:
                if arrival.at is None:
                    for first in _first(arrival, source, concurrency):
                        group.create_task(_worker(first, source, one))
                    break
                await asyncio.sleep(start + arrival.at - time.perf_counter())
                group.create_task(one(arrival))
    return sorted(results, key=lambda result: result.request_id)


async def _worker(
    first: Arrival, source: Iterator[Arrival], one: Callable[[Arrival], Awaitable[None]]
) -> None:
    await one(first)
    for arrival in source:
        await one(arrival)


def _first(arrival: Arrival, source: Iterator[Arrival], count: int) -> list[Arrival]:
    return [arrival, *(later for _, later in zip(range(count - 1), source, strict=False))]


async def model_of(url: str, api_key: str) -> str:
    """The first model that an endpoint serves.  Raises `UserError` where nobody answers."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{url}/v1/models") as response,
        ):
            response.raise_for_status()
            return str((await response.json())["data"][0]["id"])
    except (aiohttp.ClientError, OSError, KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"no model to be had: {error}",
            where=url,
            remedy="expected the address of an OpenAI endpoint, such as http://127.0.0.1:8000",
        ) from error
