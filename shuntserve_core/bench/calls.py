"""One streamed completion, and what is measured of it."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import aiohttp
from attrs import define, frozen

from shuntserve_core.bench.arrivals import Arrival


@frozen
class Endpoint:
    """What is called, and how."""

    url: str
    """Without `/v1`."""
    model: str
    api_key: str = ""
    first_token_id: int = 100
    last_token_id: int = 1000
    """Prompts are drawn from these ids: ordinary tokens of nearly every vocabulary."""
    min_tokens: bool = True
    """Whether to ask for exactly the wanted output by `min_tokens`, which vLLM knows too."""

    @property
    def headers(self) -> dict[str, str]:
        """What authorizes a call."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


@define
class Result:
    """What became of one request; times are in seconds after the start of the run."""

    request_id: int
    arrival: float
    """When it should have been sent: latency counts from here, so that a slow server cannot hide
    behind the requests that it kept from being sent (coordinated omission)."""
    input_tokens: int
    output_tokens: int = 0
    first: float | None = None
    completion: float = 0.0
    success: bool = False
    error: str = ""

    @property
    def latency(self) -> float:
        """Seconds from arrival to the end."""
        return self.completion - self.arrival

    @property
    def ttft(self) -> float | None:
        """Seconds from arrival to the first token."""
        return None if self.first is None else self.first - self.arrival

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first one."""
        if self.first is None or self.output_tokens < 2:
            return None
        return (self.completion - self.first) / (self.output_tokens - 1)


async def call(
    session: aiohttp.ClientSession, endpoint: Endpoint, arrival: Arrival, start: float, seed: int
) -> Result:
    """Send one request and read it to its end; whatever goes wrong is in the result."""
    at = time.perf_counter() - start if arrival.at is None else arrival.at
    result = Result(arrival.number, at, arrival.input_tokens)
    try:
        async with session.post(
            f"{endpoint.url}/v1/completions",
            json=_body(endpoint, arrival, seed),
            headers=endpoint.headers,
        ) as response:
            if response.status != 200:
                result.error = f"HTTP {response.status}"
                await response.read()
            else:
                await _read(response, result, start)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        result.error = type(error).__name__
    result.completion = time.perf_counter() - start
    result.success = not result.error
    return result


def _body(endpoint: Endpoint, arrival: Arrival, seed: int) -> dict[str, Any]:
    rng = random.Random(f"{seed}/{arrival.number}")
    ids = rng.choices(
        range(endpoint.first_token_id, endpoint.last_token_id), k=arrival.input_tokens
    )
    output = max(1, arrival.output_tokens)
    body: dict[str, Any] = {
        "model": endpoint.model,
        "prompt": ids,
        "max_tokens": output,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if endpoint.min_tokens:
        body["min_tokens"] = output
    return body


async def _read(response: aiohttp.ClientResponse, result: Result, start: float) -> None:
    """Read the events of a stream; only those that may matter are parsed."""
    chunks, done = 0, False
    async for line in response.content:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            done = True
        elif b'"error"' in data and "error" in (event := json.loads(data)):
            result.error = str(event["error"].get("message", "error event"))[:200]
        elif b'"usage"' in data and (usage := json.loads(data).get("usage")):
            result.output_tokens = int(usage["completion_tokens"])
        else:
            chunks += 1
            if result.first is None:
                result.first = time.perf_counter() - start
    result.output_tokens = result.output_tokens or chunks
    if not done and not result.error:
        result.error = "stream ended without [DONE]"
