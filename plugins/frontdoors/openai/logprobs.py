"""Logprobs of tokens, as each endpoint writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import evolve

from shuntserve_core.journal import Journal
from shuntserve_core.text import TextTokenizer
from shuntserve_core.types.request import TokenLogprob
from shuntserve_plugins.frontdoors.openai.answers import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprobs,
    TopLogprob,
)

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


def echoed(journal: Journal, most: int) -> tuple[Sequence[int], Sequence[TokenLogprob | None]]:
    """The tokens of a prompt with their logprobs and `most` alternatives; the first has none."""
    logprobs = (evolve(entry, top=entry.top[:most]) for entry in journal.prompt_logprobs)
    return journal.prompt, [None, *logprobs]


def prompt_logprobs(tokenizer: TextTokenizer, journal: Journal, most: int) -> PromptLogprobs:
    """By token id, as vLLM has them: the prompt's own token, and the most probable ones."""

    def entry(token: int, logprob: float, rank: int) -> tuple[str, PromptLogprob]:
        text = tokenizer.token_text(token)
        return str(token), PromptLogprob(max(logprob, LEAST), rank, text)

    return [
        None,
        *(
            dict(
                [
                    entry(token, own.logprob, own.rank),
                    *(entry(*pair, rank) for rank, pair in enumerate(own.top[:most], start=1)),
                ]
            )
            for token, own in zip(journal.prompt[1:], journal.prompt_logprobs, strict=True)
        ),
    ]
