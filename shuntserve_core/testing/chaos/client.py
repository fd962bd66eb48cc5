"""One stream, as its client sees it."""

from __future__ import annotations

import json
import time
from typing import Any

import aiohttp
from attrs import define, field

from shuntserve_core.testing.chaos.requests import Asked


@define
class Answer:
    """What came back."""

    asked: Asked
    texts: dict[int, str] = field(factory=dict)
    """By choice."""
    finish: dict[int, str] = field(factory=dict)
    logprobs: dict[int, list[Any]] = field(factory=dict)
    usage: dict[str, int] | None = None
    error: str = ""
    done: bool = False
    """Whether `[DONE]` came."""
    started: float = 0.0
    ended: float = 0.0
    gaps: list[tuple[float, float]] = field(factory=list)
    """(when, seconds since the event before), first token left out."""

    @property
    def complete(self) -> bool:
        """Whether it ended as a stream should."""
        return self.done and not self.error and self.usage is not None

    def same_as(self, other: Answer) -> bool:
        """Whether every choice has the same text, end, logprobs' tokens and usage."""
        return (
            self.texts == other.texts
            and self.finish == other.finish
            and self.usage == other.usage
            and self.logprobs == other.logprobs
        )


async def ask(
    session: aiohttp.ClientSession, url: str, asked: Asked, answer: Answer | None = None
) -> Answer:
    """Send a request and read its stream to the end; `answer` is filled as it comes."""
    answer = answer or Answer(asked)
    answer.started = time.time()
    try:
        async with session.post(url + asked.path, json=dict(asked.body)) as response:
            if response.status != 200:
                answer.error = f"status {response.status}: {(await response.text())[:200]}"
            else:
                await _read(response, answer)
    except (aiohttp.ClientError, TimeoutError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.ended = time.time()
    return answer


async def _read(response: aiohttp.ClientResponse, answer: Answer) -> None:
    last: float | None = None
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        now = time.time()
        if last is not None:
            answer.gaps.append((now, now - last))
        last = now
        data = line[6:].strip()
        if data == b"[DONE]":
            answer.done = True
            return
        _add(json.loads(data), answer)


def _add(event: dict[str, Any], answer: Answer) -> None:
    if "error" in event:
        answer.error = str(event["error"])
        return
    if event.get("usage"):
        answer.usage = {key: event["usage"][key] for key in ("prompt_tokens", "completion_tokens")}
    for choice in event.get("choices", ()):
        index = choice["index"]
        piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
        answer.texts[index] = answer.texts.get(index, "") + piece
        if choice.get("finish_reason"):
            answer.finish[index] = choice["finish_reason"]
        if choice.get("logprobs"):
            answer.logprobs.setdefault(index, []).extend(_tokens(choice["logprobs"]))


def _tokens(logprobs: dict[str, Any]) -> list[Any]:
    if "content" in logprobs:
        return [(item["token"], item["logprob"]) for item in logprobs["content"] or ()]
    return list(zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True))
