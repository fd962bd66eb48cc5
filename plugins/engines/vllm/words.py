"""What a stage says of the tensors that it sends: as msgpack, so that reading it runs nothing."""

from __future__ import annotations

from typing import Any

import msgpack
import torch
from attrs import frozen
from torch import Tensor

MOST_BYTES = 1 << 20
"""Of one message; a step's takes some hundred."""
_MOST_DIMENSIONS = 8
_MOST_SIZE = 1 << 40
_DEVICES = ("cpu", "cuda")


@frozen
class Described:
    """What the receiver must know of a tensor to make room for it."""

    device: str
    """Its type, without a number."""
    dtype: torch.dtype
    size: torch.Size


def packed(words: list[tuple[str, Any]]) -> Tensor:
    """Names with their tensors' metadata, or with plain values, as bytes."""
    entries = [
        (name, True, (value.device, str(value.dtype), list(value.size)))
        if isinstance(value, Described)
        else (name, False, value)
        for name, value in words
    ]
    return torch.frombuffer(bytearray(msgpack.packb(entries)), dtype=torch.uint8)


def checked_size(size: int) -> int:
    """The length of a message to come.  Raises `ValueError` for one that makes no sense."""
    if not 0 < size <= MOST_BYTES:
        raise ValueError(f"another rank announced {size} bytes")
    return size


def unpacked(data: Tensor) -> list[tuple[str, Any]]:
    """What `packed` was given.  Raises `ValueError` for anything else."""
    entries = msgpack.unpackb(data.numpy().tobytes())
    if not isinstance(entries, list) or not all(_is_entry(entry) for entry in entries):
        raise ValueError("another rank sent no names of tensors")
    return [(name, _metadata(value) if is_tensor else value) for name, is_tensor, value in entries]


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str)


def _metadata(value: Any) -> Described:
    device, name, sizes = value
    dtype: Any = getattr(torch, str(name).removeprefix("torch."), None)
    sound = device in _DEVICES and isinstance(dtype, torch.dtype) and isinstance(sizes, list)
    if not sound or len(sizes) > _MOST_DIMENSIONS:
        raise ValueError("another rank sent no metadata of a tensor")
    if not all(isinstance(size, int) and 0 <= size <= _MOST_SIZE for size in sizes):
        raise ValueError(f"another rank sent a tensor of shape {sizes}")
    return Described(device, dtype, torch.Size(sizes))
