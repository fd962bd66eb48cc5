"""`POST /v1/chat/completions`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import msgspec
from aiohttp import web

from shuntserve_plugins.frontdoors.openai.answers import (
    ChatChoice,
    ChatResponse,
    ResponseMessage,
    Usage,
)
from shuntserve_plugins.frontdoors.openai.choices import Choice, Collected, Delta, Prompt
from shuntserve_plugins.frontdoors.openai.chunks import Chunks
from shuntserve_plugins.frontdoors.openai.context import Call
from shuntserve_plugins.frontdoors.openai.errors import ApiError
from shuntserve_plugins.frontdoors.openai.generation import Work, respond
from shuntserve_plugins.frontdoors.openai.logprobs import chat_lists, chat_logprobs, prompt_pieces
from shuntserve_plugins.frontdoors.openai.pieces import around, array
from shuntserve_plugins.frontdoors.openai.sampling import sampling_params
from shuntserve_plugins.frontdoors.openai.tools import answer_shape
from shuntserve_plugins.frontdoors.openai.wire import ChatRequest, FunctionCall, ToolCall

_json = msgspec.json.encode
_CONTENT = b'{"content":', b"}"
_ARGUMENTS = b'{"tool_calls":[{"index":0,"function":{"arguments":', b"}}]}"


async def chat_completions(call: Call) -> web.StreamResponse:
    """Answer a chat."""
    reading = await call.read("chat")
    body, prompt = reading.body, reading.prompts[0]
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    shape = answer_shape(body)
    params = sampling_params(
        body,
        call.served(body.choices),
        prompt_length=len(prompt),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        guided=shape.guided,
    )
    work = Work(body, [(Prompt(tuple(prompt)), params)])
    return await respond(call, work, ChatRenderer(call, body, shape.function))


class ChatRenderer:
    """Writes chat answers."""

    def __init__(self, call: Call, body: ChatRequest, function: str | None) -> None:
        self._tokenizer = call.site.tokenizer
        self._function = function
        self._scores = body.prompt_logprobs
        around = _ARGUMENTS if function else _CONTENT
        self._chunks = Chunks(call, "chatcmpl", "chat.completion.chunk", "delta", body, around)
        self.text = self._chunks.text

    def first(self, choice: Choice) -> bytes:
        """The event with the role, or with the name of the function that is called."""
        if self._function is None:
            delta = b'{"role":"assistant","content":""}'
        else:
            called = {
                "index": 0,
                "id": _call_id(choice),
                "type": "function",
                "function": {"name": self._function, "arguments": ""},
            }
            delta = _json({"role": "assistant", "content": None, "tool_calls": [called]})
        return self._chunks.event(choice, delta, None, counted=0)

    def opening(self, choice: Choice) -> Iterator[bytes]:
        """Nothing: chats are not echoed."""
        return iter(())

    def delta(self, choice: Choice, delta: Delta) -> bytes:
        """An event for the text, if there is any, and one for the end."""
        events = b""
        if delta.logprobs:
            events = self._with_logprobs(choice, delta)
        elif delta.text:
            events = self._chunks.text(choice, delta.text)
        if delta.finish is None:
            return events
        return events + self._chunks.event(choice, b"{}", self._reason(delta.finish))

    def _with_logprobs(self, choice: Choice, delta: Delta) -> bytes:
        logprobs = _json(chat_logprobs(self._tokenizer, delta.tokens, delta.logprobs))
        return self._chunks.event(choice, self._chunks.content(delta.text), None, logprobs)

    def _reason(self, finish: str) -> str:
        return "tool_calls" if self._function and finish == "stop" else finish

    def last(self, usage: Usage) -> bytes:
        """The token counts, where asked for, and the end mark."""
        return self._chunks.last(usage)

    def whole(self, answers: Sequence[tuple[Choice, Collected]], usage: Usage) -> Iterator[bytes]:
        """The response, in pieces."""
        about = self._chunks
        shell = ChatResponse(about.id, "chat.completion", about.created, about.model, [], usage)
        before, after = around(_json(shell), b'"choices":[]')
        yield before + b'"choices":['
        for number, (choice, collected) in enumerate(answers):
            yield from self._choice(choice, collected, b"," if number else b"")
        if self._scores is None:
            yield b"]" + after
            return
        yield b"]" + after[:-1] + b',"prompt_logprobs":'
        yield from prompt_pieces(self._tokenizer, answers[0][0].journal, self._scores)
        yield b"}"

    def _choice(self, choice: Choice, collected: Collected, between: bytes) -> Iterator[bytes]:
        text = collected.text
        if self._function is None:
            message = ResponseMessage(text, None)
        else:
            called = ToolCall(FunctionCall(self._function, text), _call_id(choice))
            message = ResponseMessage(None, None, tool_calls=[called])
        reason = self._reason(choice.finish or "")
        shell = between + _json(ChatChoice(choice.index, message, None, reason))
        most = choice.journal.sampling.logprobs
        if most is None:
            yield shell
            return
        before, after = around(shell, b'"logprobs":null')
        yield before + b'"logprobs":{"content":'
        yield from array(chat_lists(self._tokenizer, collected.tokens, collected.logprobs, most))
        yield b',"refusal":null}' + after


def _call_id(choice: Choice) -> str:
    """Nine letters and digits, since Mistral's chat templates refuse others in a history."""
    return hashlib.sha256(choice.journal.id.encode()).hexdigest()[:9]
