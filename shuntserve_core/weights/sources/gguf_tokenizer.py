"""Tokenizer files, rebuilt from what a GGUF file says of its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

CONTROL, USER_DEFINED = 3, 4
"""Token types of GGUF that are matched as a whole before the text is split."""


class Metadata(Protocol):
    """Where the values are."""

    def value(self, key: str, default: Any = None) -> Any:
        """One value, or the default."""
        ...


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _byte_level(*, splits: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": splits,
    }


def _word_pattern(digits: str) -> str:
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_SPLITTERS: Mapping[str, list[dict[str, Any]]] = MappingProxyType(
    {
        "default": [_byte_level(splits=True)],
        "gpt-2": [_byte_level(splits=True)],
        "smollm": [{"type": "Digits", "individual_digits": True}, _byte_level(splits=True)],
        "qwen2": [_split(_word_pattern(r"\p{N}")), _byte_level(splits=False)],
        "llama-bpe": [_split(_word_pattern(r"\p{N}{1,3}")), _byte_level(splits=False)],
    }
)
"""How text is split before merging, by GGUF's name for it."""


def tokenizer_files(metadata: Metadata) -> dict[str, bytes]:
    """`tokenizer.json` and `tokenizer_config.json`; empty for a kind that is not byte-level BPE."""
    splitters = _SPLITTERS.get(metadata.value("tokenizer.ggml.pre", "default"))
    if metadata.value("tokenizer.ggml.model") != "gpt2" or splitters is None:
        return {}
    documents = {
        "tokenizer.json": _tokenizer(metadata, splitters),
        "tokenizer_config.json": _tokenizer_config(metadata),
    }
    return {
        name: json.dumps(document, ensure_ascii=False, indent=1).encode()
        for name, document in documents.items()
    }


def _tokenizer(metadata: Metadata, splitters: list[dict[str, Any]]) -> dict[str, Any]:
    tokens = metadata.value("tokenizer.ggml.tokens")
    kinds = metadata.value("tokenizer.ggml.token_type") or [1] * len(tokens)
    prefix_space = bool(metadata.value("tokenizer.ggml.add_space_prefix", False))
    splitters = [
        {**s, "add_prefix_space": prefix_space} if s["type"] == "ByteLevel" else s
        for s in splitters
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(number, token, special=kind == CONTROL)
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splitters},
        "post_processor": None,
        "decoder": _byte_level(splits=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": metadata.value("tokenizer.ggml.pre") == "llama-bpe",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in metadata.value("tokenizer.ggml.merges")],
        },
    }


def _added_token(number: int, token: str, *, special: bool) -> dict[str, Any]:
    return {
        "id": number,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    tokens = metadata.value("tokenizer.ggml.tokens")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(metadata.value("tokenizer.ggml.add_bos_token", False)),
    }
    for role, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        number = metadata.value(f"tokenizer.ggml.{key}_token_id")
        if number is not None:
            if not 0 <= number < len(tokens):
                raise ValueError(f"{key}_token_id is {number} of {len(tokens)}")
            config[f"{role}_token"] = tokens[number]
    template = metadata.value("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config
