"""Element types of weights, KV cache and arithmetic, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

DTYPE_BYTES: Mapping[str, float] = MappingProxyType(
    {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "int8": 1, "int4": 0.5}
)
"""Bytes an element takes, by the name used in configuration and in GPU specs."""

PLAIN_DTYPES = ("float16", "bfloat16", "float32")
"""Those that are computed in."""


def dtype_bytes(name: str) -> float:
    """Bytes of one element.  Raises KeyError for a name that is not in `DTYPE_BYTES`."""
    return DTYPE_BYTES[name]
