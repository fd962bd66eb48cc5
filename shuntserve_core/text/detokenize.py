"""Token ids to text, a few at a time, equal to decoding them all at once.

A token need not be whole characters, and its text may depend on its neighbours.  Text is given out
as soon as no later token can change it, and never with half a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from attrs import define, field

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST_CHARACTER = 4
"""Tokens, at a byte each.  A text that still ends with a replacement character after so many of
them really has one, and waiting on would read an ever longer window again with each token."""
CONTEXT, SILENT = 48, 16
"""Of a long row of tokens without text: how many of the first and of the last are kept, so that a
window cannot grow without end."""


class Detokenizer(Protocol):
    """The text of one sequence."""

    def feed(self, tokens: Sequence[int]) -> str:
        """Add tokens; give the text that they settled."""
        ...

    def flush(self) -> str:
        """What was held back, once nothing can follow."""
        ...


class TokenTexts(dict[int, str | None]):
    """What each token of a byte-level vocabulary is as text, as far as it was asked for; None of
    one that is not whole characters."""

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        super().__init__()
        self.bytes_of = bytes_of

    def __missing__(self, token: int) -> str | None:
        """Work it out, once."""
        try:
            text: str | None = self.bytes_of(token).decode()
        except UnicodeDecodeError:
            text = None
        self[token] = text
        return text


class ByteLevelDetokenizer:
    """For byte-level vocabularies: each token is a row of bytes, whatever its neighbours are."""

    __slots__ = ("_decoder", "_open", "_texts")

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._decoder = _UTF8("replace")
        self._open = False
        """Whether a character has begun that is not whole yet."""

    def feed(self, tokens: Sequence[int]) -> str:
        """Add tokens; give the characters that they completed."""
        if not self._open:
            if len(tokens) == 1:
                text = self._texts[tokens[0]]
                if text is not None:  # nearly all
                    return text
            else:
                texts = [text for token in tokens if (text := self._texts[token]) is not None]
                if len(texts) == len(tokens):
                    return "".join(texts)
        text = self._decoder.decode(b"".join(map(self._texts.bytes_of, tokens)))
        self._open = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        """An unfinished character, as the replacement character."""
        self._open = False
        return self._decoder.decode(b"", True)


_UTF8 = codecs.getincrementaldecoder("utf-8")


@define
class WindowDetokenizer:
    """For any other vocabulary: decodes a short window of tokens again as it moves along.

    `_settled` are the tokens of the last text given out, kept because they decide the spacing of
    what follows.  A token of `open_ids` (one raw byte, in vocabularies that fall back to bytes)
    never ends a window: the bytes after it decide how all of its run is read.
    """

    decode: Callable[[Sequence[int]], str]
    skips: Callable[[int], bool]
    """Whether a token makes no text, and none of its neighbours notices it: special ones."""
    open_ids: Collection[int] = frozenset()
    _settled: list[int] = field(factory=list)
    _pending: list[int] = field(factory=list, init=False)

    def feed(self, tokens: Sequence[int]) -> str:
        """Add tokens; give the text that they settled."""
        return "".join(self._feed_one(token) for token in tokens if not self.skips(token))

    def _feed_one(self, token: int) -> str:
        self._pending.append(token)
        if token in self.open_ids:
            return ""
        text = self._text()
        if text.endswith(REPLACEMENT) and self._waits():
            return ""
        self._move(bool(text))
        return text

    def _text(self) -> str:
        before = self.decode(self._settled) if self._settled else ""
        return self.decode([*self._settled, *self._pending])[len(before) :]

    def _waits(self) -> bool:
        """Whether the last character may still become whole."""
        if len(self._pending) < LONGEST_CHARACTER:
            return True
        return any(token in self.open_ids for token in self._pending[-LONGEST_CHARACTER:])

    def _move(self, made_text: bool) -> None:
        """Keep the pending tokens as the new context; a token without text gives none."""
        if made_text:
            self._settled = self._pending
        else:
            self._settled += self._pending
            del self._settled[CONTEXT:-SILENT]
        self._pending = []

    def flush(self) -> str:
        """What was held back, with replacement characters where it is incomplete."""
        if not self._pending:
            return ""
        text = self._text()
        self._move(bool(text))
        return text
