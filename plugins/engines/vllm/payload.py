"""What vLLM's ranks tell each other, as bytes that can be data only.

msgpack, with an extension for each of a closed set of kinds: tuples, sets, tensors, arrays, dtypes,
and the records and enumerations of vLLM that are named here.  A value of any other kind is
refused where it is sent, by its name, and bytes that say anything else are refused where they are
read.  Records are filled in field by field: neither constructors nor anything else of them runs.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from fractions import Fraction
from operator import attrgetter
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor
from vllm.distributed.parallel_state import TensorMetadata
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)
from vllm.v1 import kv_cache_interface as kv
from vllm.v1 import outputs
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.core.sched import output as scheduled
from vllm.v1.worker.worker_base import CompilationTimes

from shuntserve_plugins.engines.vllm.lending import Taken

RECORDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        # What a step is to compute
        scheduled.SchedulerOutput,
        scheduled.NewRequestData,
        scheduled.CachedRequestData,
        scheduled.GrammarOutput,
        scheduled.ScheduledEncoderInputStats,
        SamplingParams,
        StructuredOutputsParams,
        RepetitionDetectionParams,
        # What came of it
        outputs.ModelRunnerOutput,
        outputs.LogprobsLists,
        outputs.LogprobsTensors,
        # How KV memory is laid out
        kv.KVCacheConfig,
        kv.KVCacheTensor,
        kv.KVCacheGroupSpec,
        kv.FullAttentionSpec,
        kv.SlidingWindowSpec,
        kv.UniformTypeKVCacheSpecs,
        MultipleOf,
        # What ranks tell of themselves, and of tensors that they send
        CompilationTimes,
        Taken,
        TensorMetadata,
    )
}
ENUMERATIONS: dict[str, type[Enum]] = {
    kind.__name__: kind for kind in (RequestOutputKind, kv.KVQuantMode, kv.KVCacheGroupRole)
}
DTYPES = {
    str(one).removeprefix("torch."): one
    for one in vars(torch).values()
    if isinstance(one, torch.dtype)
}
_DTYPE_NAMES = {one: name for name, one in DTYPES.items()}
_ARRAYS = "biuf"
"""Kinds of numpy's types: truth values, integers, floats.  Never objects."""
_DEEPEST = 16
"""A step is 5 kinds deep."""
_MOST_DIMENSIONS = 8
(
    _TUPLE,
    _SET,
    _FROZENSET,
    _RECORD,
    _ENUMERATION,
    _DTYPE,
    _SIZE,
    _FRACTION,
    _TENSOR,
    _ARRAY,
    _NUMBER,
) = range(1, 12)
_HEADER = struct.Struct("<H")
"""Bytes that describe a tensor, before them."""


class PayloadError(ValueError):
    """Bytes of another rank that are no data, or a value that is none."""


def _names(kind: type[Any]) -> tuple[str, ...]:
    """Fields of a record, in their order."""
    if is_dataclass(kind):
        return tuple(one.name for one in fields(kind))
    for attribute in ("__struct_fields__", "_fields"):
        if hasattr(kind, attribute):
            return tuple(getattr(kind, attribute))
    return tuple(one.name for one in kind.__attrs_attrs__)


def _values(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """What gets these fields of a record."""
    get = attrgetter(*names)
    return get if len(names) > 1 else lambda record: (get(record),)


_FIELDS = {name: _names(kind) for name, kind in RECORDS.items()}
_VALUES = {name: _values(names) for name, names in _FIELDS.items()}
_NAME_OF = {kind: name for name, kind in (RECORDS | ENUMERATIONS).items()}


def vocabulary() -> str:
    """A digest of all kinds and their fields: ranks that have another do not understand us."""
    members = {name: tuple(kind.__members__) for name, kind in ENUMERATIONS.items()}
    said = repr((sorted(_FIELDS.items()), sorted(members.items())))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def packed(value: Any) -> bytes:
    """A value as bytes.  Raises `PayloadError`, with the name of what is no data."""
    return Wire().packed(value)


def unpacked(data: bytes | bytearray | memoryview) -> Any:
    """What was packed.  Raises `PayloadError` for anything else, and runs nothing."""
    try:
        return _Reader().read(data)
    except PayloadError:
        raise
    except Exception as error:  # nothing that bytes bring about may be taken for our own mistake
        raise PayloadError(f"another rank sent no data: {type(error).__name__}: {error}") from error


class Wire:
    """The same for one thread, which is spared the packers."""

    def __init__(self) -> None:
        self._writer = _Writer()

    def packed(self, value: Any) -> bytes:
        """A value as bytes.  Raises `PayloadError`, with the name of what is no data."""
        try:
            return self._writer.write(value)
        except Exception as error:
            self._writer = _Writer()  # what is left in the packers is nobody's
            if isinstance(error, PayloadError):
                raise
            raise PayloadError(f"this cannot be sent to another rank: {error}") from error

    def unpacked(self, data: bytes | bytearray | memoryview) -> Any:
        """What was packed.  Raises `PayloadError` for anything else, and runs nothing."""
        return unpacked(data)


class _Writer:
    """Packers by depth: one cannot be used again while it packs."""

    def __init__(self) -> None:
        self._packers: list[msgpack.Packer] = []
        self._depth = 0

    def write(self, value: Any) -> bytes:
        if self._depth == len(self._packers):
            if self._depth > _DEEPEST:
                raise PayloadError("a value that is nested too deeply cannot be sent")
            self._packers.append(
                msgpack.Packer(default=self._other, strict_types=True, buf_size=1 << 12)
            )
        self._depth += 1
        try:
            body: bytes = self._packers[self._depth - 1].pack(value)
        finally:
            self._depth -= 1
        return body

    def _other(self, value: Any) -> msgpack.ExtType:
        """Whatever msgpack has no kind for."""
        kind = type(value)
        if kind is tuple:
            return msgpack.ExtType(_TUPLE, self.write(list(value)))
        name = _NAME_OF.get(kind)
        if name is not None:
            return self._named(name, value)
        write = _WRITERS.get(kind)
        if write is None and issubclass(kind, np.generic):
            write = _number
        if write is None:
            raise PayloadError(
                f"a {kind.__module__}.{kind.__qualname__} is no data that ranks send each other"
            )
        return write(self, value)

    def _named(self, name: str, value: Any) -> msgpack.ExtType:
        if name in ENUMERATIONS:
            return msgpack.ExtType(_ENUMERATION, self.write([name, value.name]))
        return msgpack.ExtType(_RECORD, self.write([name, *_VALUES[name](value)]))


def _listed(code: int) -> Callable[[_Writer, Any], msgpack.ExtType]:
    return lambda writer, value: msgpack.ExtType(code, writer.write(list(value)))


def _tensor(writer: _Writer, value: Tensor) -> msgpack.ExtType:
    if value.device.type != "cpu" or value.layout != torch.strided or value.is_quantized:
        raise PayloadError(f"a tensor on {value.device} is no data that ranks send each other")
    said = writer.write([_DTYPE_NAMES[value.dtype], list(value.shape)])
    flat = value.detach().contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return msgpack.ExtType(_TENSOR, _HEADER.pack(len(said)) + said + raw)


def _array(writer: _Writer, value: np.ndarray[Any, Any]) -> msgpack.ExtType:
    if value.dtype.kind not in _ARRAYS:
        raise PayloadError(f"an array of {value.dtype} is no data that ranks send each other")
    said = writer.write([value.dtype.str, list(value.shape)])
    return msgpack.ExtType(_ARRAY, _HEADER.pack(len(said)) + said + value.tobytes())


def _number(writer: _Writer, value: np.generic) -> msgpack.ExtType:
    return msgpack.ExtType(_NUMBER, _array(writer, np.asarray(value)).data)


_WRITERS: dict[type[Any], Callable[[_Writer, Any], msgpack.ExtType]] = {
    set: _listed(_SET),
    frozenset: _listed(_FROZENSET),
    torch.Size: _listed(_SIZE),
    torch.dtype: lambda writer, one: msgpack.ExtType(_DTYPE, writer.write(_DTYPE_NAMES[one])),
    Fraction: lambda writer, one: msgpack.ExtType(
        _FRACTION, writer.write([one.numerator, one.denominator])
    ),
    Tensor: _tensor,
    np.ndarray: _array,
}


class _Reader:
    def __init__(self) -> None:
        self._depth = 0

    def read(self, data: bytes | bytearray | memoryview) -> Any:
        if self._depth > _DEEPEST:
            raise PayloadError("another rank sent something that is nested too deeply")
        self._depth += 1
        try:
            return msgpack.unpackb(data, ext_hook=self._extension, strict_map_key=False)
        finally:
            self._depth -= 1

    def _extension(self, code: int, data: bytes) -> Any:
        read = _READERS.get(code)
        if read is None:
            raise PayloadError(f"another rank sent a value of kind {code}, which there is not")
        return read(self, data)

    def _list(self, data: bytes) -> list[Any]:
        value = self.read(data)
        if not isinstance(value, list):
            raise PayloadError("another rank sent no list where there is one")
        return value


def _read_record(reader: _Reader, data: bytes) -> Any:
    name, *values = reader._list(data)
    kind, names = RECORDS.get(name), _FIELDS.get(name, ())
    if kind is None:
        raise PayloadError(f"another rank sent a {str(name)[:80]}, which is no data")
    if len(values) != len(names):
        raise PayloadError(f"another rank sent a {name} of {len(values)} fields")
    if issubclass(kind, tuple):
        return tuple.__new__(kind, values)
    record = object.__new__(kind)
    set_field = setattr if hasattr(kind, "__struct_fields__") else object.__setattr__
    for one, value in zip(names, values, strict=True):
        set_field(record, one, value)
    return record


def _read_enumeration(reader: _Reader, data: bytes) -> Any:
    name, member = reader._list(data)
    kind = ENUMERATIONS.get(name)
    if kind is None or member not in kind.__members__:
        raise PayloadError(f"another rank sent a {str(name)[:80]}, which is no data")
    return kind.__members__[member]


def _read_dtype(reader: _Reader, data: bytes) -> torch.dtype:
    return _dtype(reader.read(data))


def _dtype(name: Any) -> torch.dtype:
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise PayloadError(f"another rank sent a torch.{str(name)[:80]}, which is no data")
    return dtype


def _described(reader: _Reader, data: bytes) -> tuple[Any, list[int], bytearray]:
    """Type and shape of a tensor or an array, and its bytes, which may be written to."""
    (length,) = _HEADER.unpack_from(data)
    start = _HEADER.size + length
    name, shape = reader._list(data[_HEADER.size : start])
    sound = isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS
    if not sound or not all(type(size) is int and size >= 0 for size in shape):
        raise PayloadError(f"another rank sent a tensor of shape {str(shape)[:80]}")
    return name, shape, bytearray(memoryview(data)[start:])


def _read_tensor(reader: _Reader, data: bytes) -> Tensor:
    name, shape, raw = _described(reader, data)
    dtype = _dtype(name)
    if not raw:
        return torch.empty(shape, dtype=dtype) if 0 in shape else _short(shape)
    return torch.frombuffer(raw, dtype=dtype).reshape(shape)


def _read_array(reader: _Reader, data: bytes) -> np.ndarray[Any, Any]:
    name, shape, raw = _described(reader, data)
    dtype = np.dtype(name) if isinstance(name, str) and len(name) <= 4 else None
    if dtype is None or dtype.kind not in _ARRAYS:
        raise PayloadError(f"another rank sent an array of {str(name)[:80]}")
    return np.frombuffer(raw, dtype=dtype).reshape(shape)


def _read_number(reader: _Reader, data: bytes) -> Any:
    array = _read_array(reader, data)
    return array[()] if array.shape == () else _short(list(array.shape))


def _short(shape: list[int]) -> Any:
    raise PayloadError(f"another rank sent a tensor of shape {str(shape)[:80]} with other bytes")


def _read_fraction(reader: _Reader, data: bytes) -> Fraction:
    over, under = reader._list(data)
    if type(over) is not int or type(under) is not int:
        raise PayloadError("another rank sent no fraction")
    return Fraction(over, under)


def _read_size(reader: _Reader, data: bytes) -> torch.Size:
    return torch.Size(reader._list(data))


_READERS: dict[int, Callable[[_Reader, bytes], Any]] = {
    _TUPLE: lambda reader, data: tuple(reader._list(data)),
    _SET: lambda reader, data: set(reader._list(data)),
    _FROZENSET: lambda reader, data: frozenset(reader._list(data)),
    _RECORD: _read_record,
    _ENUMERATION: _read_enumeration,
    _DTYPE: _read_dtype,
    _SIZE: _read_size,
    _FRACTION: _read_fraction,
    _TENSOR: _read_tensor,
    _ARRAY: _read_array,
    _NUMBER: _read_number,
}
