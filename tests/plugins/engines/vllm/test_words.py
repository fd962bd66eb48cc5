"""What stages say of the tensors that they send runs nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shuntserve_plugins.engines.vllm.words import (
    MOST_BYTES,
    Described,
    checked_size,
    packed,
    unpacked,
)


def as_sent(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def test_words_arrive_as_they_were_sent() -> None:
    words = [
        ("hidden_states", Described("cpu", torch.bfloat16, torch.Size([3, 8]))),
        ("residual", Described("cuda", torch.float32, torch.Size([]))),
        ("step", 7),
        ("note", None),
    ]
    assert unpacked(packed(words)) == words


class Bomb:
    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> Any:
        return os.mknod, (str(self._file),)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"another rank sent|[Uu]npack|extra"):
        unpacked(as_sent(pickle.dumps(Bomb(tmp_path / "ran"))))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "entry",
    [
        3,
        ["x"],
        [3, False, 1],
        ["x", True, ["cpu", "torch.load", [1]]],
        ["x", True, ["cpu", "torch.float16", [-1]]],
        ["x", True, ["cpu", "torch.float16", [1 << 50]]],
        ["x", True, ["cpu", "torch.float16", [1] * 99]],
        ["x", True, ["meta", "torch.float16", [1]]],
    ],
)
def test_words_that_make_no_sense_are_refused(entry: Any) -> None:
    with pytest.raises(ValueError, match="another rank sent"):
        unpacked(as_sent(msgpack.packb([entry])))


@given(st.binary(min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_words_or_refused(data: bytes) -> None:
    try:
        words = unpacked(as_sent(data))
    except (ValueError, TypeError):
        return
    assert all(isinstance(name, str) for name, _ in words)


@pytest.mark.parametrize("size", [-1, 0, MOST_BYTES + 1, 1 << 62])
def test_lengths_that_make_no_sense_are_refused_before_memory_is_made(size: int) -> None:
    assert checked_size(MOST_BYTES) == MOST_BYTES
    with pytest.raises(ValueError, match="announced"):
        checked_size(size)
