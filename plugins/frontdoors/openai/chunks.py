"""The chunks of a streamed answer, around what differs between chats and completions."""

from __future__ import annotations

import msgspec

from shuntserve_plugins.frontdoors.openai.answers import Usage
from shuntserve_plugins.frontdoors.openai.context import Call
from shuntserve_plugins.frontdoors.openai.stream import DONE

_json = msgspec.json.encode


class Chunks:
    """What does not change from token to token, encoded once.

    `prefix` begins the answer's id, `kind` is the chunks' `object`, and `content` the name under
    which a choice has what is new.
    """

    def __init__(self, call: Call, prefix: str, kind: str, content: str, *, usage: bool) -> None:
        self.id = f"{prefix}-{call.id}"
        self.created = call.site.now()
        self.model = call.site.model
        opening = _json(
            {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        )
        self._head = b"data: " + opening[:-1] + b',"choices":['
        self._usage = usage
        self._tail = (b'],"usage":null}' if usage else b"]}") + b"\n\n"
        self._content = content.encode()
        self._plain_end = b',"logprobs":null,"finish_reason":null}' + self._tail
        self._starts: dict[int, bytes] = {}

    def plain(self, index: int, content: bytes) -> bytes:
        """The event that nearly all are: new content and nothing else."""
        start = self._starts.get(index)
        if start is None:
            start = self._starts[index] = self._head + self._start(index)
        return start + content + self._plain_end

    def event(
        self, index: int, content: bytes, finish: str | None, logprobs: bytes = b"null"
    ) -> bytes:
        """An event of one choice; `content` and `logprobs` are JSON."""
        end = b',"logprobs":%b,"finish_reason":%b}' % (logprobs, _json(finish))
        return self._head + self._start(index) + content + end + self._tail

    def last(self, usage: Usage) -> bytes:
        """The token counts, where asked for, and the end mark."""
        if not self._usage:
            return DONE
        return self._head + b'],"usage":' + _json(usage) + b"}\n\n" + DONE

    def _start(self, index: int) -> bytes:
        return b'{"index":%d,"%b":' % (index, self._content)
