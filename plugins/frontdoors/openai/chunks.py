"""The chunks of a streamed answer, around what differs between chats and completions."""

from __future__ import annotations

import msgspec

from shuntserve_plugins.frontdoors.openai.answers import Usage
from shuntserve_plugins.frontdoors.openai.choices import Choice
from shuntserve_plugins.frontdoors.openai.context import Call
from shuntserve_plugins.frontdoors.openai.stream import DONE
from shuntserve_plugins.frontdoors.openai.wire import Sampling

_json = msgspec.json.encode
_ABOUT = 'data: {{"id":"{}","object":"{}","created":{},"model":{},"choices":['


class Chunks:
    """What does not change from token to token, encoded once.

    `prefix` begins the answer's id, `kind` is the chunks' `object`, and `content` the name under
    which a choice has what is new: a text, with JSON `around` it.
    """

    def __init__(
        self,
        call: Call,
        prefix: str,
        kind: str,
        content: str,
        body: Sampling,
        around: tuple[bytes, bytes] = (b"", b""),
    ) -> None:
        self.id = f"{prefix}-{call.id}"
        self.created = call.site.now()
        self.model = call.site.model
        about = self.id, kind, self.created, _json(self.model).decode()
        self._head = _ABOUT.format(*about).encode()
        self._usage, self._throughout = body.wants_usage, body.wants_usage_throughout
        self._tail = (b'],"usage":null}' if self._usage else b"]}") + b"\n\n"
        self._content = content.encode()
        self._opening, self._closing = around
        self._text_end = self._closing + b',"logprobs":null,"finish_reason":null}' + self._tail
        self._starts: dict[int, bytes] = {}

    def text(self, choice: Choice, text: str) -> bytes:
        """The event that nearly all are: new text and nothing else."""
        if self._throughout:
            return self.event(choice, self.content(text), None)
        index = choice.index
        start = self._starts.get(index)
        if start is None:
            start = self._starts[index] = self._head + self._start(index) + self._opening
        return start + _json(text) + self._text_end

    def content(self, text: str) -> bytes:
        """A text as content of an event."""
        return self._opening + _json(text) + self._closing

    def event(
        self,
        choice: Choice,
        content: bytes,
        finish: str | None,
        logprobs: bytes = b"null",
        counted: int | None = None,
    ) -> bytes:
        """An event of one choice; `content` and `logprobs` are JSON.

        `counted` is the number of tokens so far, unless it is all that the choice has.
        """
        end = b',"logprobs":%b,"finish_reason":%b}' % (logprobs, _json(finish))
        tail = self._tail
        if self._throughout:
            done = choice.counted if counted is None else counted
            usage = usage_of(len(choice.prompt.tokens), done)
            tail = b'],"usage":' + _json(usage) + b"}\n\n"
        return self._head + self._start(choice.index) + content + end + tail

    def last(self, usage: Usage) -> bytes:
        """The token counts, where asked for, and the end mark."""
        if not self._usage:
            return DONE
        return self._head + b'],"usage":' + _json(usage) + b"}\n\n" + DONE

    def _start(self, index: int) -> bytes:
        return b'{"index":%d,"%b":' % (index, self._content)


def usage_of(prompt: int, completion: int) -> Usage:
    """The counts and their sum."""
    return Usage(prompt, completion, prompt + completion)
