"""A link whose engine is the test, and a clock that the test turns."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

from shuntserve_core.interfaces.link import READY, LinkLost, RequestRefused
from shuntserve_core.journal import Journal
from shuntserve_core.types.features import EVERY_FEATURE, Feature
from shuntserve_core.types.request import (
    EngineInfo,
    EngineLoad,
    EngineRequest,
    SamplingParams,
    StepOutput,
)

ALL = EVERY_FEATURE - {Feature.PROMPT_LOGPROBS}


class FakeLink:
    """Makes token k equal k, so that a sink can see a gap or a repetition."""

    def __init__(self, features: frozenset[str] = ALL, max_length: int = 10_000) -> None:
        self.info = EngineInfo("e", "fake", "m", 100, max_length, features)
        self.state = READY
        self.load = EngineLoad()
        self.lost: str | None = None
        self.open: dict[str, tuple[EngineRequest, Callable[[StepOutput], None]]] = {}
        self.left: list[tuple[str, Callable[[StepOutput], None]]] = []
        """Requests that were taken away: their engine may still have a word to say."""
        self.made: dict[str, int] = {}
        self.refuses = False
        self._lost: list[Callable[[str], None]] = []
        self._state: list[Callable[[str], None]] = []

    def submit(self, request: EngineRequest, on_output: Callable[[StepOutput], None]) -> None:
        if self.lost is not None:
            raise LinkLost(self.lost)
        if self.refuses:
            raise RequestRefused("cannot be sent")
        assert request.id not in self.open
        assert request.output == tuple(range(len(request.output)))
        self.open[request.id] = (request, on_output)
        self.made[request.id] = len(request.output)

    def abort(self, request_id: str) -> None:
        entry = self.open.pop(request_id, None)
        if entry is not None:
            self.left.append((request_id, entry[1]))

    async def activate(self) -> None:
        self.announce(READY)

    def announce(self, state: str) -> None:
        self.state = state
        for callback in self._state:
            callback(state)

    def on_lost(self, callback: Callable[[str], None]) -> None:
        self._lost.append(callback)

    def on_state(self, callback: Callable[[str], None]) -> None:
        self._state.append(callback)

    def close(self) -> None:
        self.lose("closed")

    # What the engine does

    def say(self, name: str, tokens: int = 0, finish: str | None = None, **more: Any) -> None:
        request, on_output = self.open[name]
        start = self.made[name]
        self.made[name] += tokens
        if finish is not None:
            del self.open[name]
            self.left.append((name, on_output))
        on_output(StepOutput(request.id, range(start, start + tokens), finish=finish, **more))

    def lose(self, reason: str = "killed") -> None:
        if self.lost is not None:
            return
        self.lost = reason
        for callback in self._lost:
            callback(reason)
        orphans, self.open = self.open, {}
        for name, (_, on_output) in orphans.items():
            on_output(StepOutput(name, finish="error", error=reason))
            self.left.append((name, on_output))


class FakeClock:
    """Time that stands still until told."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, Call]] = []
        self._numbers = count()

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Call:
        call = Call(callback, args)
        heapq.heappush(self._calls, (self.now + delay, next(self._numbers), call))
        return call

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self._calls and self._calls[0][0] <= end:
            self.now, _, call = heapq.heappop(self._calls)
            if not call.cancelled:
                call.callback(*call.args)
        self.now = end


class Call:
    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback, self.args, self.cancelled = callback, args, False

    def cancel(self) -> None:
        self.cancelled = True


class Listener:
    """A sink that checks what it hears."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.tokens: list[int] = []
        self.outcome: str | None = None
        self.error = ""
        self.cancelled = False

    def on_output(self, output: StepOutput) -> None:
        assert self.outcome is None, "told twice"
        assert not self.cancelled, "told although it was cancelled"
        assert output.id == self.journal.id
        self.tokens += output.tokens
        assert self.tokens == self.journal.output
        self.outcome, self.error = output.finish, output.error


def journal_of(name: str, max_tokens: int = 1000, prompt: int = 3, **sampling: Any) -> Journal:
    params = SamplingParams(max_tokens=max_tokens, **sampling)
    return Journal(name, tuple(range(prompt)), params)
