"""TRAW v1: one tensor in one file, a header that fits on a line and then the raw bytes.

All integers are little-endian: magic `TRAW`, uint32 version (1), uint32 ndim, uint64 shape[ndim],
uint32 dtype code, uint64 data size in bytes, then the data in C order.  docs/reference/traw.md is
the full description.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from attrs import frozen

from shuntserve_core.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"TRAW"
VERSION = 1
MAX_DIMENSIONS = 16
"""More than any weight has; a damaged count is refused before anything is allocated for it."""

MOST_ELEMENTS = 1 << 48
"""Along one dimension; numbers beyond it are damage, and some sums with them would not fit."""

_START = struct.Struct("<4sII")
_END = struct.Struct("<IQ")
FIXED_BYTES = _START.size + _END.size


@frozen
class Dtype:
    """An element type: its name in manifests, its code in headers, bytes an element."""

    name: str
    code: int
    itemsize: int


V1_DTYPES = (
    Dtype("float16", 1, 2),
    Dtype("bfloat16", 2, 2),
    Dtype("float32", 3, 4),
    Dtype("float64", 4, 8),
)
"""The published codes."""

EXTENDED_DTYPES = (
    Dtype("float8_e4m3fn", 0x101, 1),
    Dtype("float8_e5m2", 0x102, 1),
    Dtype("int8", 0x103, 1),
    Dtype("uint8", 0x104, 1),
    Dtype("int32", 0x105, 4),
)
"""Ours, far outside v1's range, so that a reader of v1 alone refuses them by their code."""

DTYPES: Mapping[str, Dtype] = MappingProxyType({d.name: d for d in V1_DTYPES + EXTENDED_DTYPES})
_BY_CODE = {dtype.code: dtype for dtype in DTYPES.values()}
_V1_CODES = frozenset(dtype.code for dtype in V1_DTYPES)


class TrawError(UserError):
    """A file that is not the TRAW file it should be; the message says why."""


@frozen
class Header:
    """What precedes the data."""

    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of data: elements times bytes an element."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def header_bytes(self) -> int:
        """Bytes before the data."""
        return FIXED_BYTES + 8 * len(self.shape)

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.header_bytes + self.data_bytes

    def encode(self) -> bytes:
        """The header as it stands in the file."""
        sizes = struct.pack(f"<{len(self.shape)}Q", *self.shape)
        start = _START.pack(MAGIC, VERSION, len(self.shape))
        return start + sizes + _END.pack(self.dtype.code, self.data_bytes)


def header_of(dtype: str, shape: tuple[int, ...]) -> Header:
    """The header for a tensor.  Raises `TrawError` for an element type that has no code."""
    if dtype not in DTYPES:
        raise TrawError(
            f"TRAW has no code for dtype {dtype!r}", remedy=f"it knows {', '.join(DTYPES)}"
        )
    return Header(DTYPES[dtype], shape)


def decode_header(
    data: Buffer, *, file_bytes: int | None = None, where: str = "", v1_only: bool = False
) -> Header:
    """Read the header at the beginning of `data`, which may hold more.

    `file_bytes` is the size of the whole file, where known; it must agree with the header.
    `v1_only` refuses our extended codes, as a reader that knows only the published format does.
    Raises `TrawError` with the reason for anything that is not exactly right.
    """
    view = memoryview(data).cast("B")
    if len(view) < _START.size:
        raise TrawError(f"{len(view)} bytes are too few for a TRAW header", where=where)
    magic, version, dimensions = _START.unpack_from(view)
    if magic != MAGIC:
        raise TrawError(f"not a TRAW file: it begins with {bytes(magic)!r}", where=where)
    if version != VERSION:
        raise TrawError(f"TRAW version {version}, this reader knows {VERSION}", where=where)
    if dimensions > MAX_DIMENSIONS:
        raise TrawError(
            f"{dimensions} dimensions, at most {MAX_DIMENSIONS} make sense", where=where
        )
    if len(view) < FIXED_BYTES + 8 * dimensions:
        raise TrawError("the file ends inside the TRAW header", where=where)
    shape = struct.unpack_from(f"<{dimensions}Q", view, _START.size)
    code, data_bytes = _END.unpack_from(view, _START.size + 8 * dimensions)
    if code not in (_V1_CODES if v1_only else _BY_CODE):
        raise TrawError(f"unknown TRAW dtype code {code}", where=where)
    header = Header(_BY_CODE[code], shape)
    _check_sizes(header, data_bytes, file_bytes, where)
    return header


def _check_sizes(header: Header, data_bytes: int, file_bytes: int | None, where: str) -> None:
    if header.data_bytes != data_bytes:
        raise TrawError(
            f"shape {list(header.shape)} of {header.dtype.name} takes {header.data_bytes} bytes, "
            f"but the header says {data_bytes}",
            where=where,
        )
    if max(header.shape, default=0) > MOST_ELEMENTS:
        raise TrawError(f"no tensor has the shape {list(header.shape)}", where=where)
    if file_bytes is not None and header.file_bytes != file_bytes:
        raise TrawError(
            f"the header promises a file of {header.file_bytes} bytes, this one has {file_bytes}",
            where=where,
        )


def write_file(path: Path, dtype: str, shape: tuple[int, ...], data: Buffer) -> None:
    """Write one tensor; `data` is its bytes in C order and is not copied."""
    header = header_of(dtype, shape)
    view = memoryview(data).cast("B")
    if len(view) != header.data_bytes:
        raise TrawError(
            f"{len(view)} bytes given for a tensor of {header.data_bytes}", where=str(path)
        )
    with path.open("wb") as file:
        file.write(header.encode())
        file.write(view)


def open_file(path: Path, *, v1_only: bool = False) -> tuple[Header, memoryview]:
    """The header and a read-only view of the data, mapped and so read only where it is touched."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < FIXED_BYTES:
            raise TrawError(f"{size} bytes are too few for a TRAW header", where=str(path))
        view = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    header = decode_header(view, file_bytes=size, where=str(path), v1_only=v1_only)
    return header, view[header.header_bytes :]


def read_file_into(path: Path, buffer: Buffer, *, offset: int = 0) -> Header:
    """Fill `buffer` with data beginning `offset` bytes into the tensor, without a copy between."""
    view = memoryview(buffer).cast("B")
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(FIXED_BYTES + 8 * MAX_DIMENSIONS)
        header = decode_header(start, file_bytes=size, where=str(path))
        if not 0 <= offset <= header.data_bytes - len(view):
            raise TrawError(
                f"bytes {offset}..{offset + len(view)} lie outside the {header.data_bytes} there",
                where=str(path),
            )
        file.seek(header.header_bytes + offset)
        while view:
            count = file.readinto(view)
            if not count:
                raise TrawError("the file became shorter while it was read", where=str(path))
            view = view[count:]
    return header
