"""What is where in a GGUF file: metadata and tensors, every count and offset checked.

The structure (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is read here and not with
`gguf.GGUFReader`, which believes the counts in the file: an array of 2^63 values is read past the
end for ever.  Element types and their arithmetic are that package's.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from attrs import define, frozen
from numpy.typing import NDArray

VERSIONS = (2, 3)
MOST_KEYS = 10_000
MOST_TENSORS = 100_000
MOST_STRINGS = 4_000_000
"""Elements of one array; the largest vocabularies have a quarter of a million."""
MOST_METADATA_BYTES = 256 << 20
"""Before the tensors' data; vocabulary and merges of a large tokenizer take 10 MB."""
MOST_NAME_BYTES = 65_535
MOST_TENSOR_NAME_BYTES = 64
MOST_DIMENSIONS = 4
MOST_ALIGNMENT = 1 << 20

_SCALARS: Mapping[int, str] = MappingProxyType(
    dict(enumerate("BbHhIif?", start=0)) | {10: "Q", 11: "q", 12: "d"}
)
_STRING, _ARRAY = 8, 9


@frozen(eq=False)
class GgufTensor:
    """One tensor's place."""

    kind: Any
    """Its `gguf.GGMLQuantizationType`."""
    shape: tuple[int, ...]
    """From the outermost dimension on: rows first."""
    offset: int
    nbytes: int


@frozen(eq=False)
class GgufLayout:
    """A file's metadata and the places of its tensors."""

    metadata: Mapping[str, Any]
    """Scalars, strings, and lists of either."""
    tensors: Mapping[str, GgufTensor]
    data_offset: int
    data: NDArray[np.uint8]
    """The whole file, mapped."""

    def rows(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """Its bytes, shape (rows, bytes a row); a vector is one row."""
        flat = self.data[tensor.offset : tensor.offset + tensor.nbytes]
        return flat.reshape(math.prod(tensor.shape[:-1]), -1)


def read_layout(path: Path) -> GgufLayout:
    """Read everything but the tensors' data.

    Raises `ValueError` for a file that is not exactly what the format says, before anything is
    allocated that grows with a number in it; `OSError`.
    """
    size = path.stat().st_size
    if size < 24:
        raise ValueError(f"{size} bytes are too few")
    data = np.memmap(path, np.uint8, "r")
    cursor = _Cursor(data.data[:MOST_METADATA_BYTES])
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version = cursor.number("I")
    if version not in VERSIONS:
        swapped = version & 0xFFFF == 0
        raise ValueError("its bytes are big-endian" if swapped else f"version {version}")
    tensor_count = cursor.count("Q", MOST_TENSORS, "tensors")
    metadata = cursor.metadata(cursor.count("Q", MOST_KEYS, "keys"))
    found = cursor.tensors(tensor_count)
    start = _aligned(cursor.position, _alignment(metadata))
    tensors = {name: _placed(tensor, start, size, name) for name, tensor in found.items()}
    _check_places(tensors)
    return GgufLayout(metadata, tensors, start, data)


def _alignment(metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= MOST_ALIGNMENT:
        raise ValueError(f"an alignment of {str(alignment)[:40]}")
    if alignment & (alignment - 1):
        raise ValueError(f"an alignment of {alignment}, which is no power of two")
    return alignment


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _placed(tensor: GgufTensor, start: int, size: int, name: str) -> GgufTensor:
    offset = start + tensor.offset
    if offset + tensor.nbytes > size:
        raise ValueError(f"the file ends inside tensor {name}")
    return GgufTensor(tensor.kind, tensor.shape, offset, tensor.nbytes)


def _check_places(tensors: Mapping[str, GgufTensor]) -> None:
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset < end:
            raise ValueError(f"tensors {before} and {name} overlap")
        end, before = tensor.offset + tensor.nbytes, name


@define(eq=False)
class _Cursor:
    """Reads forward through the file's head."""

    data: memoryview
    position: int = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        return bytes(self.data[self._advance(count) : self.position])

    def _advance(self, count: int) -> int:
        start = self.position
        if count > len(self.data) - start:
            raise ValueError("it ends inside its metadata")
        self.position += count
        return start

    def number(self, code: str) -> Any:
        """One scalar."""
        start = self._advance(struct.calcsize(f"<{code}"))
        return struct.unpack_from(f"<{code}", self.data, start)[0]

    def count(self, code: str, most: int, what: str) -> int:
        """A count that somebody wrote."""
        count = int(self.number(code))
        if count > most:
            raise ValueError(f"{count} {what}, at most {most} make sense")
        return count

    def text(self, most: int) -> str:
        """A string with its length."""
        return self.take(self.count("Q", most, "bytes of text")).decode("utf-8")

    def metadata(self, count: int) -> dict[str, Any]:
        """So many keys with their values."""
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self.text(MOST_NAME_BYTES)
            if key in found:
                raise ValueError(f"the key {key[:80]} comes twice")
            found[key] = self._value(int(self.number("I")))
        return found

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text(MOST_METADATA_BYTES)
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise ValueError(f"a value of unknown type {kind}")
        return self.number(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind = int(self.number("I"))
        count = self.count("Q", MOST_STRINGS, "elements of an array")
        if kind == _STRING:
            return [self.text(MOST_NAME_BYTES) for _ in range(count)]
        if kind not in _SCALARS:  # arrays of arrays too: no model has them
            raise ValueError(f"an array of unknown type {kind}")
        code = f"<{count}{_SCALARS[kind]}"
        return list(struct.unpack_from(code, self.data, self._advance(struct.calcsize(code))))

    def tensors(self, count: int) -> dict[str, GgufTensor]:
        """So many tensors; offsets are relative to where their data begins."""
        found: dict[str, GgufTensor] = {}
        for _ in range(count):
            name = self.text(MOST_TENSOR_NAME_BYTES)
            if name in found:
                raise ValueError(f"tensor {name} comes twice")
            found[name] = self._tensor(name)
        return found

    def _tensor(self, name: str) -> GgufTensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        dimensions = self.count("I", MOST_DIMENSIONS, "dimensions")
        inner_first = [int(self.number("Q")) for _ in range(dimensions)]
        kind = GGMLQuantizationType(self.number("I"))
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not inner_first or 0 in inner_first or inner_first[0] % block:
            raise ValueError(f"tensor {name} of type {kind.name} with shape {inner_first[::-1]}")
        nbytes = math.prod(inner_first) // block * block_bytes
        return GgufTensor(kind, tuple(reversed(inner_first)), int(self.number("Q")), nbytes)
