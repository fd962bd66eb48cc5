"""The chunks of a streamed answer, around what differs between chats and completions."""

from __future__ import annotations

import msgspec

from shuntserve_plugins.frontdoors.openai.answers import Usage
from shuntserve_plugins.frontdoors.openai.choices import Choice
from shuntserve_plugins.frontdoors.openai.context import Call
from shuntserve_plugins.frontdoors.openai.stream import DONE
from shuntserve_plugins.frontdoors.openai.wire import Sampling

_json = msgspec.json.encode


class Chunks:
    """What does not change from token to token, encoded once.

    `prefix` begins the answer's id, `kind` is the chunks' `object`, and `content` the name under
    which a choice has what is new.
    """

    def __init__(self, call: Call, prefix: str, kind: str, content: str, body: Sampling) -> None:
        self.id = f"{prefix}-{call.id}"
        self.created = call.site.now()
        self.model = call.site.model
        opening = _json(
            {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        )
        self._head = b"data: " + opening[:-1] + b',"choices":['
        self._usage, self._throughout = body.wants_usage, body.wants_usage_throughout
        self._tail = (b'],"usage":null}' if self._usage else b"]}") + b"\n\n"
        self._content = content.encode()
        self._plain_end = b',"logprobs":null,"finish_reason":null}' + self._tail
        self._starts: dict[int, bytes] = {}

    def plain(self, choice: Choice, content: bytes) -> bytes:
        """The event that nearly all are: new content and nothing else."""
        if self._throughout:
            return self.event(choice, content, None)
        index = choice.index
        start = self._starts.get(index)
        if start is None:
            start = self._starts[index] = self._head + self._start(index)
        return start + content + self._plain_end

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
