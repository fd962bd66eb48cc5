from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from shuntserve_core.text import TextTokenizer, TooLong


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_text_is_longer_than_its_tokens_can_be(byte_level: TextTokenizer, text: str) -> None:
    most = byte_level.bytes_per_token
    assert most is not None
    assert len(text.encode()) <= most * len(byte_level.encode(text))


@pytest.mark.parametrize(
    ("text", "reads"), [("fox " * 40, True), ("x" * 10_000, False), ("🙂" * 10_000, False)]
)
def test_what_cannot_fit_is_not_read(
    byte_level: TextTokenizer, text: str, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    encode = byte_level.encode

    def counted(text: str, *, add_special_tokens: bool = True) -> list[int]:
        read.append(text)
        return encode(text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(byte_level, "encode", counted)
    if reads:
        assert byte_level.encode_within(text, 200) == encode(text)
    else:
        with pytest.raises(TooLong):
            byte_level.encode_within(text, 200)
    assert bool(read) is reads


def test_of_what_is_probably_too_long_only_a_part_is_read(
    byte_level: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(byte_level.__dict__, "bytes_per_token", None)
    read = []
    encode = byte_level.encode

    def counted(text: str, *, add_special_tokens: bool = True) -> list[int]:
        read.append(len(text))
        return encode(text, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(byte_level, "encode", counted)
    with pytest.raises(TooLong):
        byte_level.encode_within("the fox jumps " * 100_000, 5000)
    assert sum(read) < 200_000


@pytest.mark.parametrize(
    "drops",
    [
        lambda t: t.add_special_tokens([AddedToken("<mask>", lstrip=True)]),
        lambda t: setattr(t, "normalizer", normalizers.Strip()),
        lambda t: setattr(t, "normalizer", normalizers.Replace("long", "")),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()),
        lambda t: setattr(t, "model", models.WordLevel({"a": 0}, "a")),
    ],
)
def test_a_tokenizer_that_drops_text_has_no_bound(drops: object) -> None:
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    assert TextTokenizer(tokenizer).bytes_per_token == len("<0x00>")
    assert callable(drops)
    drops(tokenizer)
    assert TextTokenizer(tokenizer).bytes_per_token is None
