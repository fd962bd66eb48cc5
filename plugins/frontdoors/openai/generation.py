"""The life of a generation: submit every choice, wait, and leave nothing running behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from aiohttp import web
from attrs import frozen

from shuntserve_core.interfaces.frontdoor import Refused
from shuntserve_core.journal import Journal
from shuntserve_core.text import StopSet, StopStrings
from shuntserve_core.types.features import Feature
from shuntserve_core.types.request import SamplingParams
from shuntserve_plugins.frontdoors.openai.answers import Usage
from shuntserve_plugins.frontdoors.openai.choices import Choice, Collected, Delta, Emit, Prompt
from shuntserve_plugins.frontdoors.openai.chunks import usage_of
from shuntserve_plugins.frontdoors.openai.context import Call
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.pace import Pace, Wanted
from shuntserve_plugins.frontdoors.openai.pieces import Backlog, in_turns, json_of
from shuntserve_plugins.frontdoors.openai.sampling import choice_seed, written_for
from shuntserve_plugins.frontdoors.openai.stream import EventStream
from shuntserve_plugins.frontdoors.openai.turns import Turns
from shuntserve_plugins.frontdoors.openai.wire import Sampling


class Renderer(Protocol):
    """How an endpoint writes answers."""

    def first(self, choice: Choice) -> bytes:
        """Events before a choice's first delta."""
        ...

    @property
    def text(self) -> Callable[[Choice, str], bytes]:
        """Makes the event for more text of a choice, and nothing else."""
        ...

    def opening(self, choice: Choice) -> Iterator[bytes]:
        """The same, in pieces none of which takes long, where the prompt is `scored`."""
        ...

    def delta(self, choice: Choice, delta: Delta) -> bytes:
        """Events for one delta; none if it shows nothing."""
        ...

    def last(self, usage: Usage) -> bytes:
        """Events that end a complete stream."""
        ...

    def whole(self, answers: Sequence[tuple[Choice, Collected]], usage: Usage) -> Iterator[bytes]:
        """The body of a response, in pieces none of which takes long."""
        ...


@frozen
class Work:
    """What is to be generated: every prompt with its parameters, `body.choices` times."""

    body: Sampling
    prompts: Sequence[tuple[Prompt, SamplingParams]]

    def usage(self, choices: Sequence[Choice]) -> Usage:
        """Exact counts; a prompt counts once, however many answers it has."""
        prompt = self.prompt_tokens
        completion = sum(choice.counted for choice in choices)
        return usage_of(prompt, completion)

    @property
    def answers(self) -> int:
        """Sequences to generate."""
        return len(self.prompts) * self.body.choices

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each once."""
        return sum(len(prompt.tokens) for prompt, _ in self.prompts)

    @property
    def reserved(self) -> int:
        """Tokens of output that were asked for; 0 where nobody said how many."""
        body = self.body
        if body.max_tokens is None and getattr(body, "max_completion_tokens", None) is None:
            return 0
        return self.body.choices * sum(params.max_tokens for _, params in self.prompts)


class Generation:
    """All choices of one request, as one thing that ends once."""

    def __init__(
        self, call: Call, work: Work, emit: Emit, more: Callable[[Choice, str], None]
    ) -> None:
        """`more` is told the text of steps that add nothing else, `emit` of all others."""
        self._call = call
        self._backend = call.site.backend
        self._emit = emit
        self._more = more
        self._unfinished = 0
        self._latencies = call.site.metrics.latencies
        self._answers = work.body.choices
        self._shape = written_for(work.body, Feature.GUIDED)
        self.first_at: float | None = None
        self.error: ApiError | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stops = work.body.stops
        include = bool(work.body.include_stop_str_in_output)
        self._stops = StopSet(stops, include) if stops else None
        self.choices = [
            self._choice(work.body, prompt, params, index)
            for prompt, params in work.prompts
            for index in range(work.body.choices)
        ]
        choices = self.choices
        call.produced = lambda: sum(choice.counted for choice in choices)

    def _choice(self, body: Sampling, prompt: Prompt, params: SamplingParams, index: int) -> Choice:
        number = self._unfinished
        self._unfinished += 1
        journal = Journal(
            id=f"{self._call.id}-{number}" if number else self._call.id,
            prompt=prompt.tokens,
            sampling=choice_seed(params, index),
            tenant=self._call.tenant,
            weight=self._call.weight,
            cache_salt=self._call.cache_salt,
            group=self._call.id,
        )
        skip = body.skip_special_tokens is not False
        return Choice(
            number,
            prompt,
            journal,
            self._call.site.tokenizer.detokenizer(prompt.tokens, skip_special_tokens=skip),
            StopStrings(self._stops) if self._stops else None,
            self._on_delta,
            self._on_text,
            self._backend.cancel,
        )

    def _on_text(self, choice: Choice, tokens: int, text: str) -> None:
        pace = choice.pace
        if pace is not None:
            self._latencies.more(pace, tokens, time.perf_counter())
        if text:
            self._more(choice, text)

    def _on_delta(self, choice: Choice, delta: Delta) -> None:
        if delta.finish == "error":
            self.fail(_failure(choice.journal, delta.error, self._shape))
            return
        pace = choice.pace
        new = 0 if pace is None else choice.counted - pace.tokens
        if pace is not None and new:
            now = time.perf_counter()
            if pace.tokens:
                self._latencies.more(pace, new, now)
            else:
                self._began(choice, pace, new, now)
        if delta.finish is not None:
            self._unfinished -= 1
            self._ended(choice, delta.finish)
        self._emit(choice, delta)
        if not self._unfinished and not self._over.done():
            self._over.set_result(None)

    def _began(self, choice: Choice, pace: Pace, new: int, now: float) -> None:
        if self.first_at is None:
            self.first_at = now
        self._latencies.began(pace, len(choice.prompt.tokens), new, now)

    @property
    def complete(self) -> bool:
        """Whether every choice has come to its end."""
        return not self._unfinished

    async def submit(self) -> None:
        """Hand every choice to the cluster; raises `ApiError` if it takes one of them not."""
        turns = Turns()
        try:
            for choice in self.choices:
                await turns.spend(len(choice.prompt.tokens))
                if self._over.done():  # one of those before it has failed
                    return
                choice.pace = Pace(self._call.started, time.perf_counter())
                self._backend.submit(choice.journal, choice)
        except Refused as error:
            self.cancel()
            raise ApiError.of(error) from error
        except BaseException:  # whatever it is, the choices before it must not run on
            self.cancel()
            raise

    def fail(self, error: ApiError) -> None:
        """End all choices with an error."""
        if self._over.done():
            return
        self.error = error
        self.cancel()
        self._over.set_result(None)

    def cancel(self) -> None:
        """Stop what still runs."""
        for choice in self.choices:
            if choice.finish in (None, "error"):
                choice.finish = "cancelled"
                self._backend.cancel(choice.journal.id)

    async def wait(self) -> None:
        """Until the generation is over; whoever waits is cancelled when the client goes."""
        ends = self._call.site.ends
        ends.add(self.fail)
        try:
            await self._over
        finally:
            ends.discard(self.fail)
            self.cancel()
            for choice in self.choices:
                self._ended(choice, "abort" if self.error is None else "error")

    def release(self) -> None:
        """Part from the choices: nothing comes of them any more, and objects that know each other
        keep their memory until a garbage collection, which every stream waits for."""
        produced = sum(choice.counted for choice in self.choices)
        self._call.produced = lambda: produced
        self._emit = self._more = _ignore
        for choice in self.choices:
            choice.release()

    def _ended(self, choice: Choice, reason: str) -> None:
        journal, pace = choice.journal, choice.pace
        if pace is None:
            return
        choice.pace = None
        most = journal.sampling.max_tokens
        wanted = Wanted(len(journal.prompt), most, self._answers, journal.waited)
        self._latencies.finish(pace, wanted, reason, time.perf_counter())


def _ignore(_choice: Choice, _more: object) -> None:
    """For what comes after the end."""


def _failure(journal: Journal, reason: str, shape: str) -> ApiError:
    """The error of a request that its engine could not finish.

    What an engine refuses of a request that was read here is a constraint that it cannot compile:
    `shape` is the parameter that asked for it.
    """
    status = journal.status if journal.status >= 400 else 500
    shaped = status == 400 and journal.sampling.guided is not None
    detail = f": {reason}" if reason else ""
    return ApiError(
        status,
        f"The request could not be completed{detail}.",
        param=shape if shaped else None,
        code=journal.code or "generation_failed",
        retry_after=journal.retry_after,
        # OpenAI's clients send what ended with a 5xx again, unless they are told not to.
        headers={"x-should-retry": "false"} if journal.code else None,
    )


async def respond(call: Call, work: Work, renderer: Renderer) -> web.StreamResponse:
    """Generate, and answer as a stream or in one piece."""
    stay = call.begin(work.answers, work.prompt_tokens * work.body.choices, work.reserved)
    try:
        return await (_stream if work.body.stream else _whole)(call, work, renderer)
    finally:
        call.finish(stay)


async def _whole(call: Call, work: Work, renderer: Renderer) -> web.StreamResponse:
    answers: dict[Choice, Collected] = {}
    generation = Generation(
        call,
        work,
        lambda choice, delta: answers[choice].add(delta),
        lambda choice, text: answers[choice].texts.append(text),
    )
    answers.update((choice, Collected()) for choice in generation.choices)
    await _run(call, work, generation, _nothing)
    if generation.error is not None:
        raise generation.error
    pieces = renderer.whole(list(answers.items()), work.usage(generation.choices))
    return json_of(await in_turns(pieces))


async def _stream(call: Call, work: Work, renderer: Renderer) -> web.StreamResponse:
    headers = {"X-Request-Id": call.request_id, **call.cors}
    silence = call.site.keep_alive_seconds
    stream = EventStream(call.request, headers, silence, gather=work.answers > 1)
    begun: set[Choice] = set()
    send, event = stream.send, renderer.text

    def emit(choice: Choice, delta: Delta) -> None:
        events = b""
        if choice not in begun:
            begun.add(choice)
            events = renderer.first(choice)
        events += renderer.delta(choice, delta)
        if generation.complete:
            stream.end(events + renderer.last(work.usage(generation.choices)))
        elif events:
            stream.send(events)

    def more(choice: Choice, text: str) -> None:
        send(event(choice, text))

    backlog = Backlog(stream)

    def emit_scored(choice: Choice, delta: Delta) -> None:
        new = choice not in begun
        begun.add(choice)
        events = renderer.delta(choice, delta)
        if generation.complete:
            events += renderer.last(work.usage(generation.choices))
        backlog.put(renderer.opening(choice) if new else iter(()), events, generation.complete)

    scored = any(prompt.scored for prompt, _ in work.prompts)
    try:
        generation = Generation(call, work, emit_scored if scored else emit, more)
        await _run(call, work, generation, stream.release)
        if generation.error is None or stream.started:
            await backlog.done()
            stream.release()
    finally:
        backlog.close()
        stream.close()
    if generation.error is not None:
        if not stream.started:
            raise generation.error
        call.log["error"] = generation.error.code
        stream.end(b"data: " + generation.error.body() + b"\n\n")
    return stream


def _nothing() -> None:
    """For answers in one piece."""


async def _run(
    call: Call, work: Work, generation: Generation, submitted: Callable[[], None]
) -> None:
    """Submit and wait, and count whatever came of it."""
    await generation.submit()
    submitted()
    try:
        await generation.wait()
    finally:
        _account(call, work, generation)
        generation.release()


def _account(call: Call, work: Work, generation: Generation) -> None:
    usage = work.usage(generation.choices)
    metrics = call.site.metrics
    metrics.prompt_tokens.inc(usage.prompt_tokens)
    metrics.completion_tokens.inc(usage.completion_tokens)
    now = time.perf_counter()
    metrics.duration.observe(now - call.started)
    call.log.update(
        stream=bool(work.body.stream),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        finish=generation.choices[0].finish,
    )
    if generation.first_at is not None:
        wait = generation.first_at - call.started
        metrics.first_token.observe(wait)
        call.log["first_token_ms"] = round(wait * 1000, 3)
