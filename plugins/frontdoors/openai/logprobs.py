"""Logprobs of tokens, as each endpoint writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from shuntserve_core.text import TextTokenizer
from shuntserve_core.types.request import TokenLogprob
from shuntserve_plugins.frontdoors.openai.answers import (
    ChatLogprobs,
    CompletionLogprobs,
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
    logprobs: Iterable[TokenLogprob],
    offset: int = 0,
) -> CompletionLogprobs:
    """In columns; `offset` is the length of the text before the first token."""
    columns = CompletionLogprobs([], [], [], [])
    for token, chosen in zip(tokens, logprobs, strict=False):
        text, logprob = tokenizer.token_text(token), max(chosen.logprob, LEAST)
        columns.text_offset.append(offset)
        columns.tokens.append(text)
        columns.token_logprobs.append(logprob)
        tops = {tokenizer.token_text(other): max(value, LEAST) for other, value in chosen.top}
        columns.top_logprobs.append({**tops, text: logprob})
        offset += len(text)
    return columns
