"""How long a text can be that is no more than so many tokens: what is longer need not be read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

_SHRINKS = {"Prepend": 1, "Append": 1, "NFC": 3, "NFD": 1, "NFKC": 8, "NFKD": 8, "Lowercase": 3}
"""Normalizers, and how many bytes of a text one byte may be left of at most.  (Composing: three
letters of two or three bytes to one of three; compatibility and case: four bytes to one.)"""
_KEEPS = frozenset({"ByteLevel", "Metaspace", "Digits", "Punctuation"})
"""Pre-tokenizers that drop nothing."""


def bytes_per_token(tokenizer: Tokenizer, byte_level: bool, longest: int) -> int | None:
    """Most bytes of text that one token can stand for; None where there is no such number.

    `longest` is the length in bytes of the vocabulary's longest token.  A token stands for more
    than its own text where the tokenizer drops some: unknown words, blanks around special tokens,
    what a normalizer or pre-tokenizer removes.
    """
    model = tokenizer.model
    whole = isinstance(model, BPE) and (byte_level or model.byte_fallback)
    added = tokenizer.get_added_tokens_decoder().values()
    if not whole or any(token.lstrip or token.rstrip for token in added):
        return None
    factor = 1
    for step in _steps(tokenizer.normalizer, "normalizers"):
        shrinks = _shrinks(step)
        if shrinks is None:
            return None
        factor *= shrinks
    if all(_keeps(step) for step in _steps(tokenizer.pre_tokenizer, "pretokenizers")):
        return longest * factor
    return None


def _steps(component: Any, inner: str) -> Iterator[Mapping[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, as its file describes them."""
    pending = [] if component is None else [json.loads(component.__getstate__())]
    while pending:
        step = pending.pop()
        if step["type"] == "Sequence":
            pending += step[inner]
        else:
            yield step


def _shrinks(step: Mapping[str, Any]) -> int | None:
    if step["type"] != "Replace":
        return _SHRINKS.get(step["type"])
    pattern = step["pattern"].get("String")
    same = pattern is not None and len(pattern.encode()) <= len(step["content"].encode())
    return 1 if same else None


def _keeps(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Split":
        return bool(step["behavior"] != "Removed")
    return step["type"] in _KEEPS
