"""`POST /v1/completions`."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import cast

import msgspec
from aiohttp import web
from attrs import evolve

from shuntserve_core.types.request import TokenLogprob
from shuntserve_plugins.frontdoors.openai.answers import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionResponse,
    Usage,
)
from shuntserve_plugins.frontdoors.openai.choices import Choice, Collected, Delta, Prompt
from shuntserve_plugins.frontdoors.openai.chunks import Chunks
from shuntserve_plugins.frontdoors.openai.constraints import constraint_of
from shuntserve_plugins.frontdoors.openai.context import Call
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.generation import Work, respond
from shuntserve_plugins.frontdoors.openai.logprobs import (
    completion_logprobs,
    completion_pieces,
    echoed,
    prompt_pieces,
)
from shuntserve_plugins.frontdoors.openai.parameters import refused
from shuntserve_plugins.frontdoors.openai.pieces import around
from shuntserve_plugins.frontdoors.openai.sampling import sampling_params
from shuntserve_plugins.frontdoors.openai.turns import Turns
from shuntserve_plugins.frontdoors.openai.wire import CompletionRequest

_json = msgspec.json.encode
DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint alone."""


async def completions(call: Call) -> web.StreamResponse:
    """Continue texts."""
    reading = await call.read("completion")
    body = reading.body
    _check(body)
    most = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    # Prompts differ in their length alone, so the longest is the one to be checked.
    params = sampling_params(
        body,
        call.served(len(reading.prompts) * body.choices),
        prompt_length=max(map(len, reading.prompts)),
        max_tokens=max(most, 1),
        logprobs=body.logprobs,
        prompt_logprobs=_prompt_logprobs(body),
        guided=constraint_of(body),
    )
    prompts, turns, scored = [], Turns(), _scores_echo(body)
    for index, ids in enumerate(reading.prompts):
        await turns.spend(len(ids))
        prompt = Prompt(
            tuple(ids),
            reading.echoes[index] if body.echo else b"",
            scored=scored,
            characters=sum(len(call.site.tokenizer.token_text(i)) for i in ids) if scored else 0,
            alone=most == 0,
        )
        seeded = params if body.seed is not None else evolve(params, seed=random.getrandbits(63))
        prompts.append((prompt, seeded))
    work = Work(body, prompts)
    return await respond(call, work, CompletionRenderer(call, body))


def _check(body: CompletionRequest) -> None:
    if body.best_of is not None and body.best_of != body.choices:
        raise refused("completion", "best_of")
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        raise ApiError(400, "max_tokens of 0 needs echo or prompt_logprobs", param="max_tokens")


def _scores_echo(body: CompletionRequest) -> bool:
    return bool(body.echo) and body.logprobs is not None


def _prompt_logprobs(body: CompletionRequest) -> int | None:
    """How many are wanted: with `echo`, the prompt's tokens have logprobs as the answer's do."""
    echoed = body.logprobs if body.echo else None
    wanted = [count for count in (body.prompt_logprobs, echoed) if count is not None]
    return max(wanted, default=None)


class CompletionRenderer:
    """Writes completions."""

    def __init__(self, call: Call, body: CompletionRequest) -> None:
        self._tokenizer, self._body = call.site.tokenizer, body
        self._most = body.logprobs or 0
        self._chunks = Chunks(call, "cmpl", "text_completion", "text", body)
        self.text = self._chunks.text
        self._offsets: dict[int, int] = {}

    def first(self, choice: Choice) -> bytes:
        """The event with the prompt, where it is echoed."""
        echo = choice.prompt.echo
        return self._chunks.event(choice, echo, None, counted=0) if echo else b""

    def opening(self, choice: Choice) -> Iterator[bytes]:
        """The event with the prompt and its logprobs."""
        event = self._chunks.event(choice, choice.prompt.echo or b'""', None, counted=0)
        before, after = around(event, b'"logprobs":null')
        yield before + b'"logprobs":'
        journal = choice.journal
        scores = echoed(journal, self._most)
        yield from completion_pieces(self._tokenizer, journal.prompt, scores, self._most)
        yield after

    def delta(self, choice: Choice, delta: Delta) -> bytes:
        """One event, unless there is nothing to show."""
        if delta.finish is None and not delta.logprobs:
            return self._chunks.text(choice, delta.text) if delta.text else b""
        logprobs = self._logprobs(choice, delta)
        return self._chunks.event(choice, _json(delta.text), delta.finish, logprobs)

    def _logprobs(self, choice: Choice, delta: Delta) -> bytes:
        if not delta.logprobs:
            return b"null"
        return _json(self._columns(choice, delta.tokens, delta.logprobs))

    def _columns(
        self, choice: Choice, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]
    ) -> CompletionLogprobs:
        offset = self._offsets.get(choice.index, choice.prompt.characters)
        columns = completion_logprobs(self._tokenizer, tokens, logprobs, offset)
        self._offsets[choice.index] = columns.text_offset[-1] + len(columns.tokens[-1])
        return columns

    def last(self, usage: Usage) -> bytes:
        """The token counts, where asked for, and the end mark."""
        return self._chunks.last(usage)

    def whole(self, answers: Sequence[tuple[Choice, Collected]], usage: Usage) -> Iterator[bytes]:
        """The response, in pieces."""
        about = self._chunks
        shell = CompletionResponse(
            about.id, "text_completion", about.created, about.model, [], usage
        )
        before, after = around(_json(shell), b'"choices":[]')
        yield before + b'"choices":['
        for number, (choice, collected) in enumerate(answers):
            yield from self._choice(choice, collected, b"," if number else b"")
        yield b"]" + after

    def _choice(self, choice: Choice, collected: Collected, between: bytes) -> Iterator[bytes]:
        text: str = collected.text
        if choice.prompt.echo:  # as JSON it is ready, and may be long
            joined = choice.prompt.echo[:-1] + _json(text)[1:]
            text = cast(str, msgspec.Raw(joined))
        shell = _json(CompletionChoice(choice.index, text, None, choice.finish or ""))
        before, after = around(between + shell, b'"logprobs":null')
        if self._body.logprobs is None:
            yield before + b'"logprobs":null'
        else:
            yield before + b'"logprobs":'
            yield from self._logprob_pieces(choice, collected)
        scores = self._body.prompt_logprobs
        if scores is None:
            yield after
            return
        yield after[:-1] + b',"prompt_logprobs":'
        yield from prompt_pieces(self._tokenizer, choice.journal, scores)
        yield b"}"

    def _logprob_pieces(self, choice: Choice, collected: Collected) -> Iterator[bytes]:
        tokens: Iterable[int] = collected.tokens
        logprobs: Iterable[TokenLogprob | None] = collected.logprobs
        if choice.prompt.scored:
            tokens = chain(choice.journal.prompt, tokens)
            logprobs = chain(echoed(choice.journal, self._most), logprobs)
        return completion_pieces(self._tokenizer, tokens, logprobs, self._most)
