from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from shuntserve_core.testing.models import write_tokenizer
from shuntserve_core.text import TextTokenizer, load_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def byte_level(folder: Path) -> TextTokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def byte_fallback() -> TextTokenizer:
    """As Llama 2 has it: words that begin with ▁, single bytes, one leading space dropped."""
    words = ["<unk>", "▁", "▁the", "the", "▁fox", "s", "你", "▁▁", "\N{REPLACEMENT CHARACTER}", "."]
    vocab = {word: number for number, word in enumerate(words)}
    vocab |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return TextTokenizer(tokenizer)


@pytest.fixture(scope="session")
def metaspace() -> TextTokenizer:
    words = ["<unk>", "▁", "▁the", "the", "▁fox", "s", "▁▁", "."]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, "<unk>"))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.decoder = decoders.Metaspace()
    return TextTokenizer(tokenizer)
