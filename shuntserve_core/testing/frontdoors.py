"""For authors of front doors: a cluster that answers from a script, and a contract to pass.

class TestMyDoor(FrontDoorContract):
    def make_door(self):
        return MyDoor(port=0)
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from attrs import define, evolve, field, frozen

from shuntserve_core.interfaces.frontdoor import FrontDoor, Refused, Sink
from shuntserve_core.journal import Journal
from shuntserve_core.types.features import EVERY_FEATURE
from shuntserve_core.types.request import StepOutput, TokenLogprob

FEATURES = EVERY_FEATURE


@frozen
class Reply:
    """What the script answers to one request."""

    tokens: tuple[int, ...] = ()
    finish: str = "length"
    error: str = ""
    status: int = 503
    """With `error`, the journal's `status`."""
    retry_after: float | None = 1.0
    code: str = ""
    """With `error`, the journal's `code`."""


Script = Callable[[Journal], Reply]


def repeat_prompt(journal: Journal) -> Reply:
    """Answer with the prompt, over and over, up to `max_tokens`."""
    prompt = journal.prompt or (0,)
    count = journal.sampling.max_tokens
    return Reply((prompt * math.ceil(count / len(prompt)))[:count])


@define
class _Running:
    journal: Journal
    sink: Sink
    reply: Reply
    rest: Iterator[int]


@define(eq=False)
class ScriptedBackend:
    """A `Backend` in this process: steps all requests at once, as an engine does.

    Every `interval` seconds (0: every turn of the event loop) each request gets `per_step` tokens
    of what `script` answers; one whose script has run out gets its `finish`.
    """

    script: Script = repeat_prompt
    interval: float = 0.0
    per_step: int = 1
    features: frozenset[str] = FEATURES
    max_length: int = 4096
    ready: bool = True
    refusal: Refused | None = None
    """Raised by every `submit`."""
    running: dict[str, _Running] = field(factory=dict, init=False)
    submitted: list[Journal] = field(factory=list, init=False)
    cancelled: list[str] = field(factory=list, init=False)
    steps: int = field(default=0, init=False)
    keep_journals: bool = True
    """Whether `submitted` and `cancelled` are kept; off for long loads."""
    _timer: asyncio.Handle | None = field(default=None, init=False)

    def submit(self, journal: Journal, sink: Sink) -> None:
        """Take a request, or refuse as told."""
        if self.refusal is not None:
            raise self.refusal
        if journal.id in self.running:
            raise ValueError(f"request {journal.id} is already running")
        reply = self.script(journal)
        journal.waited = 0.0
        self.running[journal.id] = _Running(journal, sink, reply, iter(reply.tokens))
        if self.keep_journals:
            self.submitted.append(journal)
        self._schedule()

    def cancel(self, request_id: str) -> None:
        """Forget a request; its sink hears nothing more."""
        if self.running.pop(request_id, None) is not None and self.keep_journals:
            self.cancelled.append(request_id)

    def status(self) -> dict[str, Any]:
        """As a cluster of one pipeline."""
        running = len(self.running)
        return {
            "in_flight": running,
            "counters": {"steps": self.steps},
            "engines": {
                "running": running,
                "waiting": 0,
                "kv_used": 0.25,
                "preemptions": 0,
                "prefix_queries": self.steps,
                "prefix_hits": 0,
            },
            "pipelines": [{"name": "script", "in_flight": running, "circuit": "closed"}],
        }

    def _schedule(self) -> None:
        if self._timer is None and self.running:
            loop = asyncio.get_running_loop()
            delay = self.interval
            self._timer = (
                loop.call_later(delay, self._step) if delay else loop.call_soon(self._step)
            )

    def _step(self) -> None:
        self._timer = None
        self.steps += 1
        for request_id, running in list(self.running.items()):
            if request_id in self.running:  # a sink may have cancelled it in this very step
                self._advance(request_id, running)
        self._schedule()

    def _advance(self, request_id: str, running: _Running) -> None:
        tokens = tuple(islice(running.rest, self.per_step))
        journal = running.journal
        done = len(journal.output) + len(tokens) >= len(running.reply.tokens)
        sampling = journal.sampling
        if done or sampling.logprobs is not None or sampling.prompt_logprobs is not None:
            output = self._output(running, tokens, done)
        else:
            output = StepOutput(request_id, tokens)
        if done:
            del self.running[request_id]
        journal.record(output)
        if output.finish == "error":
            reply = running.reply
            journal.status, journal.retry_after = reply.status, reply.retry_after
            journal.code = reply.code
        running.sink.on_output(output)

    def _output(self, running: _Running, tokens: tuple[int, ...], done: bool) -> StepOutput:
        journal, reply = running.journal, running.reply
        asked = journal.sampling.logprobs
        scored = None if journal.prompt_logprobs else journal.sampling.prompt_logprobs
        return StepOutput(
            journal.id,
            tokens,
            () if asked is None else tuple(self._logprob(token, asked) for token in tokens),
            reply.finish if done else None,
            reply.error if done else "",
            prompt_logprobs=()
            if scored is None
            else [evolve(self._logprob(token, scored), rank=1) for token in journal.prompt[1:]],
        )

    @staticmethod
    def _logprob(token: int, alternatives: int) -> TokenLogprob:
        top = [(token + rank, -0.5 - rank) for rank in range(alternatives)]
        return TokenLogprob(-0.5, top)


class FrontDoorContract:
    """What every front door must do; subclass it, and say how to make one."""

    def make_door(self) -> FrontDoor:
        """A door that listens on a free port of this machine."""
        raise NotImplementedError

    def model_dir(self) -> str:
        """A folder with the tokenizer that the door is to use."""
        raise NotImplementedError

    async def test_listens_where_it_says(self) -> None:
        """`start` returns the URL of a port that accepts connections."""
        door = self.make_door()
        url = await door.start(ScriptedBackend(), self.model_dir(), "model")
        assert await self._accepts(url)
        await door.drain(1.0)

    async def test_closes_when_drained(self) -> None:
        """After `drain` nothing listens, and a drain without requests takes no time."""
        door = self.make_door()
        url = await door.start(ScriptedBackend(), self.model_dir(), "model")
        async with asyncio.timeout(5.0):
            await door.drain(60.0)
        assert not await self._accepts(url)

    async def test_it_says_what_it_opens_in_lines(self) -> None:
        """If it says anything: `serve` prints it once the door listens."""
        door = self.make_door()
        await door.start(ScriptedBackend(), self.model_dir(), "model")
        if hasattr(door, "security_posture"):
            assert all(line and "\n" not in line for line in door.security_posture())
        await door.drain(1.0)

    async def test_drain_may_be_repeated(self) -> None:
        """A second `drain` (a second signal) is harmless."""
        door = self.make_door()
        await door.start(ScriptedBackend(), self.model_dir(), "model")
        await door.drain(1.0)
        await door.drain(0.0)

    @staticmethod
    async def _accepts(url: str) -> bool:
        parts = urlsplit(url)
        try:
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True


def fixed(tokens: Sequence[int], finish: str = "stop", error: str = "") -> Script:
    """A script that answers every request with the same tokens."""
    return lambda _: Reply(tuple(tokens), finish, error)
