"""Logprobs of tokens, as each endpoint writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec
from attrs import evolve

from shuntserve_core.journal import Journal
from shuntserve_core.text import TextTokenizer
from shuntserve_core.types.request import TokenLogprob
from shuntserve_plugins.frontdoors.openai.answers import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    TokenLogprobs,
    TopLogprob,
)
from shuntserve_plugins.frontdoors.openai.pieces import array, slices

_json = msgspec.json.encode
LEAST = -9999.0
"""Written for minus infinity, which JSON cannot hold (as OpenAI does)."""


def chat_logprobs(
    tokenizer: TextTokenizer, tokens: Sequence[int], logprobs: Iterable[TokenLogprob]
) -> ChatLogprobs:
    """With the bytes of every token, so that text can be joined again."""
    return ChatLogprobs(
        [
            TokenLogprobs(
                tokenizer.token_text(token),
                max(chosen.logprob, LEAST),
                list(tokenizer.token_bytes(token)),
                [
                    TopLogprob(
                        tokenizer.token_text(other),
                        max(logprob, LEAST),
                        list(tokenizer.token_bytes(other)),
                    )
                    for other, logprob in chosen.top
                ],
            )
            for token, chosen in zip(tokens, logprobs, strict=False)
        ]
    )


def completion_logprobs(
    tokenizer: TextTokenizer,
    tokens: Sequence[int],
    logprobs: Iterable[TokenLogprob | None],
    offset: int = 0,
) -> CompletionLogprobs:
    """In columns; `offset` is the length of the text before the first token."""
    columns = CompletionLogprobs([], [], [], [])
    for token, chosen in zip(tokens, logprobs, strict=False):
        text = tokenizer.token_text(token)
        columns.text_offset.append(offset)
        columns.tokens.append(text)
        offset += len(text)
        if chosen is None:
            columns.token_logprobs.append(None)
            columns.top_logprobs.append(None)
            continue
        logprob = max(chosen.logprob, LEAST)
        columns.token_logprobs.append(logprob)
        tops = {tokenizer.token_text(other): max(value, LEAST) for other, value in chosen.top}
        columns.top_logprobs.append({**tops, text: logprob})
    return columns


def chat_lists(
    tokenizer: TextTokenizer, tokens: Sequence[int], logprobs: Sequence[TokenLogprob], most: int
) -> Iterator[bytes]:
    """The content of `chat_logprobs` as JSON, in several lists."""
    for some in slices(zip(tokens, logprobs, strict=False), most):
        scored = [token for token, _ in some], [entry for _, entry in some]
        yield _json(chat_logprobs(tokenizer, *scored).content)


def completion_pieces(
    tokenizer: TextTokenizer,
    tokens: Iterable[int],
    logprobs: Iterable[TokenLogprob | None],
    most: int,
) -> Iterator[bytes]:
    """What `completion_logprobs` gives as JSON, in pieces."""
    columns: dict[str, list[bytes]] = {name: [] for name in CompletionLogprobs.__struct_fields__}
    offset = 0
    for some in slices(zip(tokens, logprobs, strict=False), most):
        scored = [token for token, _ in some], [entry for _, entry in some]
        part = completion_logprobs(tokenizer, *scored, offset)
        offset = part.text_offset[-1] + len(part.tokens[-1])
        for name, lists in columns.items():
            lists.append(_json(getattr(part, name)))
        yield b""
    before = "{"
    for name, lists in columns.items():
        yield f'{before}"{name}":'.encode()
        yield from array(lists)
        before = ","
    yield b"}"


def echoed(journal: Journal, most: int) -> Iterator[TokenLogprob | None]:
    """The logprobs of a prompt's tokens with `most` alternatives; the first has none."""
    yield None
    for entry in journal.prompt_logprobs:
        yield evolve(entry, top=entry.top[:most])


def prompt_pieces(tokenizer: TextTokenizer, journal: Journal, most: int) -> Iterator[bytes]:
    """`PromptLogprobs` as JSON, in pieces: by token id, as vLLM has them, the prompt's own token,
    and the most probable ones."""

    def entry(token: int, logprob: float, rank: int) -> tuple[str, PromptLogprob]:
        text = tokenizer.token_text(token)
        return str(token), PromptLogprob(max(logprob, LEAST), rank, text)

    def lists() -> Iterator[bytes]:
        yield b"[null]"
        scored = zip(journal.prompt[1:], journal.prompt_logprobs, strict=True)
        for some in slices(scored, most):
            yield _json(
                [
                    dict(
                        [
                            entry(token, own.logprob, own.rank),
                            *(entry(*pair, rank) for rank, pair in enumerate(own.top[:most], 1)),
                        ]
                    )
                    for token, own in some
                ]
            )

    return array(lists())
