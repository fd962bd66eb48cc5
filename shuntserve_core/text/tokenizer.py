"""A model's tokenizer, and what its config files say about special tokens and defaults."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shuntserve_core.errors import UserError
from shuntserve_core.folders import refuse_tokenizer
from shuntserve_core.text.conversation import Conversations
from shuntserve_core.text.detokenize import (
    ByteLevelDetokenizer,
    Detokenizer,
    TokenTexts,
    WindowDetokenizer,
)
from shuntserve_core.text.extent import bytes_per_token
from shuntserve_core.text.template import ChatTemplate
from shuntserve_core.text.template_files import (
    DEFAULT,
    TOOLS,
    chat_templates,
    read_json,
    special_tokens,
)

_RAW_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTEXT = 6
"""Prompt tokens whose spacing the first output token may depend on."""
_PIECE = 1 << 15
"""Characters that are counted at once of a text that is probably too long."""
_SEAM = 64
"""Tokens that a cut through a text may at most have added."""


class TooLong(Exception):
    """A text is more than so many tokens."""


class TextTokenizer:
    """Encodes and decodes for one model.  Ids of `skipped` (special tokens) make no text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop_ids: Iterable[int] = (),
        bos_id: int | None = None,
        template: ChatTemplate | None = None,
        tool_template: ChatTemplate | None = None,
        defaults: Mapping[str, float] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.stop_ids = tuple(dict.fromkeys(stop_ids))
        """Tokens that end an answer, as the model's configs name them."""
        self.bos_id = bos_id
        self.template = template
        """For chats; for those with tools only where there is no other for them."""
        self._conversations = None if template is None else Conversations(template)
        self._with_tools = Conversations(tool_template) if tool_template else self._conversations
        self.defaults = dict(defaults or {})
        """Sampling parameters that the model's authors suggest."""
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self._added = tokenizer.get_added_tokens_decoder()
        self.skipped = frozenset(i for i, token in self._added.items() if token.special)
        self._bytes: dict[int, bytes] = {}
        self._all, self._visible = TokenTexts(self.token_bytes), TokenTexts(self._output_bytes)

    def conversations(self, *, with_tools: bool) -> Conversations | None:
        """What writes the prompts of chats; None for models that have no template for them."""
        return self._with_tools if with_tools else self._conversations

    def learn_templates(self) -> None:
        """Find out now what the templates show, rather than at the first request: some 100 ms."""
        for known in {self._conversations, self._with_tools}:
            if known is not None:
                known.abilities.find_out()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the model's begin-of-text token unless told otherwise."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_within(self, text: str, most: int, *, add_special_tokens: bool = True) -> list[int]:
        """As `encode`; raises `TooLong` where it is soon clear that it is more than `most` tokens.

        A text that no `most` tokens can be is not read at all, and one that is probably too long
        only until it is known to be.
        """
        longest = self.bytes_per_token
        size = len(text.encode("utf-8", "surrogatepass"))
        if longest is not None and size > most * longest:
            raise TooLong(f"{size} bytes are more than {most} tokens can be")
        if size > 8 * most:
            self._count(text, most)
        return self.encode(text, add_special_tokens=add_special_tokens)

    def _count(self, text: str, most: int) -> None:
        count = 0
        for at in range(0, len(text), _PIECE):
            piece = text[at : at + _PIECE]
            count += len(self.encode(piece, add_special_tokens=False)) - _SEAM
            if count > most:
                raise TooLong(f"the first {at + len(piece)} characters are {count} tokens or more")

    @cached_property
    def bytes_per_token(self) -> int | None:
        """Most bytes of text that one token can stand for; None where there is no such number."""
        longest = max(len(self._bytes_of(token)) for token in range(self.vocab_size))
        return bytes_per_token(self._tokenizer, self._byte_level, longest)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of all of `ids` at once."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def detokenizer(
        self, prompt: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> Detokenizer:
        """For the tokens of one answer to `prompt`."""
        if self._byte_level:
            return ByteLevelDetokenizer(self._visible if skip_special_tokens else self._all)
        skipped = self.skipped if skip_special_tokens else frozenset()

        def skips(token: int) -> bool:
            return token in skipped or self._tokenizer.id_to_token(token) is None

        context = [token for token in prompt[-_CONTEXT:] if not skips(token)]
        if context and context[-1] in self._raw_bytes:
            context = []
        return WindowDetokenizer(
            decode=lambda ids: self.decode(ids, skip_special_tokens=skip_special_tokens),
            skips=skips,
            open_ids=self._raw_bytes,
            settled=context,
        )

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token by itself; none for an id outside the vocabulary."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._bytes_of(token)
        return known

    def token_text(self, token: int) -> str:
        """The text of one token by itself, with replacement characters where it is not whole."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def _output_bytes(self, token: int) -> bytes:
        return b"" if token in self.skipped else self.token_bytes(token)

    def _bytes_of(self, token: int) -> bytes:
        text: str | None = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self._byte_level:
            values = [_BYTE_OF.get(character) for character in text]
            whole = [value for value in values if value is not None]
            return bytes(whole) if len(whole) == len(values) else text.encode()
        if token in self._raw_bytes:
            return bytes([self._raw_bytes[token]])
        return text.encode() if token in self._added else text.replace("▁", " ").encode()

    @cached_property
    def _steps(self) -> frozenset[str]:
        """Kinds of the decoder's steps: `ByteLevel`, `ByteFallback`, `Metaspace`..."""
        decoder = self._tokenizer.decoder
        if decoder is None:
            return frozenset()
        state = json.loads(decoder.__getstate__())
        return frozenset(step["type"] for step in state.get("decoders", [state]))

    @cached_property
    def _byte_level(self) -> bool:
        return self._steps == {"ByteLevel"}

    @cached_property
    def _raw_bytes(self) -> dict[int, int]:
        """Ids of tokens such as `<0x0A>`, and the byte that each stands for."""
        if "ByteFallback" not in self._steps:
            return {}
        matches = ((i, _RAW_BYTE.fullmatch(t)) for t, i in self._tokenizer.get_vocab().items())
        return {i: int(match[1], 16) for i, match in matches if match}


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Printable Latin-1 stands for itself; the other bytes have characters from U+0100 on, in order
    (Radford et al., 2019, the GPT-2 vocabulary).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    moved = {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | moved


_BYTE_OF = _byte_alphabet()

_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def load_tokenizer(model_dir: str | Path, *, template: str = "") -> TextTokenizer:
    """Read `tokenizer.json` and its companions; `template` is a file to use as chat template.

    Raises `UserError` where there is no usable tokenizer.
    """
    folder = Path(model_dir)
    path = folder / "tokenizer.json"
    refuse_tokenizer(folder, "tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise UserError(
            f"not a tokenizer: {error}",
            where=str(path),
            remedy="download it again, or have transformers save it",
        ) from error
    # Files keep the settings of training; a server never truncates or pads.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = read_json(folder / "tokenizer_config.json")
    generation = read_json(folder / "generation_config.json")
    named = special_tokens(folder, config)
    templates = chat_templates(folder, config, named, template)
    bos = named.get("bos_token")
    return TextTokenizer(
        tokenizer,
        stop_ids=_stop_ids(tokenizer, named, generation, read_json(folder / "config.json")),
        bos_id=None if bos is None else tokenizer.token_to_id(bos),
        template=templates.get(DEFAULT),
        tool_template=templates.get(TOOLS),
        defaults={
            n: generation[n] for n in _DEFAULTS if isinstance(generation.get(n), int | float)
        },
    )


def _stop_ids(
    tokenizer: Tokenizer,
    named: Mapping[str, str],
    generation: Mapping[str, Any],
    model: Mapping[str, Any],
) -> list[int]:
    """End-of-text ids from every place where models keep them."""
    found: list[int | None] = []
    for source in (generation, model):
        value = source.get("eos_token_id")
        found += value if isinstance(value, list) else [value]
    if "eos_token" in named:
        found.append(tokenizer.token_to_id(named["eos_token"]))
    return [token for token in found if isinstance(token, int)]
