"""What comes out in pieces equals what comes out at once, wherever the pieces are cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_core.text import TextTokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
KINDS = ["byte_level", "byte_fallback", "metaspace"]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    found: TextTokenizer = request.getfixturevalue(request.param)
    return found


@given(data=st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_equal_the_whole(
    kind: str, data: st.DataObject, request: pytest.FixtureRequest
) -> None:
    tokenizer: TextTokenizer = request.getfixturevalue(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    detokenizer = tokenizer.detokenizer()
    text, rest = "", ids
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        text += detokenizer.feed(tuple(rest[:size]))
        rest = rest[size:]
    assert text + detokenizer.flush() == tokenizer.decode(ids)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_prompt_decides_the_first_space(
    data: st.DataObject, byte_fallback: TextTokenizer
) -> None:
    words = st.integers(2, 7)
    prompt = data.draw(st.lists(words, min_size=1, max_size=12))
    output = data.draw(st.lists(st.integers(0, byte_fallback.vocab_size - 1), max_size=12))
    detokenizer = byte_fallback.detokenizer(prompt)
    text = "".join(detokenizer.feed((token,)) for token in output) + detokenizer.flush()
    assert byte_fallback.decode(prompt) + text == byte_fallback.decode(prompt + output)


def test_never_half_a_character(byte_level: TextTokenizer) -> None:
    text = "🙂你好 größer"
    ids = [byte_level._tokenizer.token_to_id(c) for c in _byte_characters(text)]
    detokenizer = byte_level.detokenizer()
    pieces = [detokenizer.feed((token,)) for token in ids]
    assert all(REPLACEMENT not in piece for piece in pieces)
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) == len(text)


def _byte_characters(text: str) -> list[str]:
    from shuntserve_core.text.tokenizer import _BYTE_OF

    characters = {byte: character for character, byte in _BYTE_OF.items()}
    return [characters[byte] for byte in text.encode()]


def test_an_unfinished_character_comes_out_at_the_end(byte_level: TextTokenizer) -> None:
    half = byte_level._tokenizer.token_to_id(_byte_characters("你")[0])
    detokenizer = byte_level.detokenizer()
    assert detokenizer.feed((half,)) == ""
    assert detokenizer.flush() == REPLACEMENT
    assert detokenizer.flush() == ""


def test_special_tokens_make_no_text_unless_asked(byte_level: TextTokenizer) -> None:
    ids = [*byte_level.encode("fox"), byte_level.stop_ids[0]]
    assert byte_level.detokenizer().feed(ids) == "fox"
    assert byte_level.detokenizer(skip_special_tokens=False).feed(ids) == "fox<|im_end|>"


def test_bytes_of_tokens_join_to_the_text(tokenizer: TextTokenizer) -> None:
    ids = [t for t in range(tokenizer.vocab_size) if t not in tokenizer.skipped]
    whole = b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
    if tokenizer.detokenizer().__class__.__name__ == "ByteLevelDetokenizer":
        assert whole == tokenizer.decode(ids)
    assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b""
    assert "fox" in whole
