"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import web

from shuntserve_core.text import TextTokenizer
from shuntserve_plugins.frontdoors.openai.answers import CompletionChoice, CompletionResponse, Usage
from shuntserve_plugins.frontdoors.openai.choices import Choice, Collected, Delta, Prompt
from shuntserve_plugins.frontdoors.openai.chunks import Chunks
from shuntserve_plugins.frontdoors.openai.context import Call
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.generation import Work, respond
from shuntserve_plugins.frontdoors.openai.logprobs import completion_logprobs
from shuntserve_plugins.frontdoors.openai.prompts import completion_prompts
from shuntserve_plugins.frontdoors.openai.sampling import sampling_params
from shuntserve_plugins.frontdoors.openai.wire import CompletionRequest

_decoder = msgspec.json.Decoder(CompletionRequest)
_json = msgspec.json.encode
DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint alone."""


async def completions(call: Call) -> web.StreamResponse:
    """Continue texts."""
    body = await call.body(_decoder)
    call.check_model(body.model)
    _check(body)
    tokenizer = call.site.tokenizer
    special = body.add_special_tokens is not False
    prompts = await completion_prompts(tokenizer, body.prompt, special=special)
    served = call.served()
    most = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    work = Work(
        body,
        [
            (
                Prompt(tuple(ids), _echo(tokenizer, body, index, ids)),
                sampling_params(
                    body,
                    served,
                    prompt_length=len(ids),
                    max_tokens=most,
                    logprobs=body.logprobs,
                ),
            )
            for index, ids in enumerate(prompts)
        ],
    )
    return await respond(call, work, CompletionRenderer(call, body))


def _check(body: CompletionRequest) -> None:
    if body.suffix:
        raise ApiError(400, "suffix is not supported", param="suffix", code="unsupported_parameter")
    if body.best_of is not None and body.best_of != body.choices:
        raise ApiError(400, "best_of must equal n", param="best_of", code="unsupported_parameter")
    if body.echo and body.logprobs is not None:
        raise ApiError(
            400,
            "echo gives no logprobs of the prompt; ask for one of echo and logprobs",
            param="echo",
            code="unsupported_parameter",
        )


def _echo(tokenizer: TextTokenizer, body: CompletionRequest, index: int, ids: Sequence[int]) -> str:
    """The prompt's text as the client wrote it, or decoded where it gave token ids."""
    if not body.echo:
        return ""
    if isinstance(body.prompt, str):
        return body.prompt
    written = body.prompt[index]
    return written if isinstance(written, str) else tokenizer.decode(ids)


class CompletionRenderer:
    """Writes completions."""

    def __init__(self, call: Call, body: CompletionRequest) -> None:
        self._tokenizer = call.site.tokenizer
        self._chunks = Chunks(call, "cmpl", "text_completion", "text", body)
        self._offsets: dict[int, int] = {}

    def first(self, choice: Choice) -> bytes:
        """The event with the prompt, where it is echoed."""
        echo = choice.prompt.text
        return self._chunks.event(choice, _json(echo), None, counted=0) if echo else b""

    def delta(self, choice: Choice, delta: Delta) -> bytes:
        """One event, unless there is nothing to show."""
        if delta.finish is None and not delta.logprobs:
            return self._chunks.plain(choice, _json(delta.text)) if delta.text else b""
        logprobs = self._logprobs(choice, delta)
        return self._chunks.event(choice, _json(delta.text), delta.finish, logprobs)

    def _logprobs(self, choice: Choice, delta: Delta) -> bytes:
        if not delta.logprobs:
            return b"null"
        offset = self._offsets.get(choice.index, 0)
        columns = completion_logprobs(self._tokenizer, delta.tokens, delta.logprobs, offset)
        self._offsets[choice.index] = columns.text_offset[-1] + len(columns.tokens[-1])
        return _json(columns)

    def last(self, usage: Usage) -> bytes:
        """The token counts, where asked for, and the end mark."""
        return self._chunks.last(usage)

    def whole(self, answers: Sequence[tuple[Choice, Collected]], usage: Usage) -> bytes:
        """The response in one piece."""
        choices = [self._choice(choice, collected) for choice, collected in answers]
        about = self._chunks
        return _json(
            CompletionResponse(
                about.id, "text_completion", about.created, about.model, choices, usage
            )
        )

    def _choice(self, choice: Choice, collected: Collected) -> CompletionChoice:
        wanted = choice.journal.sampling.logprobs is not None
        logprobs = (
            completion_logprobs(self._tokenizer, collected.tokens, collected.logprobs)
            if wanted
            else None
        )
        text = choice.prompt.text + collected.text
        return CompletionChoice(choice.index, text, logprobs, choice.finish or "")
