"""A sound configuration, in pieces that a test can replace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

PIECES = {
    "model": '[model]\nname = "Qwen/Qwen3-32B"\n',
    "workload": "[workload]\ninput_tokens = 763\noutput_tokens = 232\n",
    "cluster": '[[cluster]]\ninstance = "g6e.xlarge"\ncount = 4\n',
    "estimator": '[estimator]\nname = "paper"\n',
}

WriteConfig = Callable[..., Path]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of the configuration asks the hub; other tests ask a stand-in of their own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def write_config(tmp_path: Path) -> WriteConfig:
    """Write a configuration: pieces by name replace the sound ones, `extra` is put after them."""

    def write(extra: str = "", **pieces: str) -> Path:
        file = tmp_path / "cluster.toml"
        text = "\n".join([*{**PIECES, **pieces}.values(), extra])
        file.write_text(text, encoding="utf-8")
        return file

    return write
